"""Other people's trainers and the runs that they published: beside the planner, in the path of no plan."""
