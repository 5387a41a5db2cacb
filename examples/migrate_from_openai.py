"""Move a fine-tuning script from OpenAI to Tunewright: the client's address and key change, its calls do not.

python examples/migrate_from_openai.py training.jsonl     (TUNEWRIGHT_API_KEY: from `tunewright keys create`)
"""

import os
import sys

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8040/v1", api_key=os.environ["TUNEWRIGHT_API_KEY"])
with open(sys.argv[1], "rb") as data:
    file = client.files.create(file=data, purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=file.id)
print(client.fine_tuning.jobs.retrieve(job.id).status, job.id)
