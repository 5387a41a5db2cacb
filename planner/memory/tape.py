"""A symbolic autograd tape: which bytes are alive while a piece of a model runs forward and then backward.

Each operation states what it returns, what it saves for its backward, which inputs get a gradient and what it needs
meanwhile. The rules are autograd's own: a saved tensor lives until the operation that saved it has run backward; a
gradient lives from its production to its consumption; a second gradient of the same tensor is added in place where
nothing else shares the storage (`InputBuffer::accumulate` in torch/csrc/autograd/input_buffer.cpp).
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

Tensor = int  # index into Tape.sizes


class Operation(NamedTuple):
    """One node of the graph. Sizes in bytes."""

    output: Tensor
    inputs: tuple[Tensor, ...]  # those that get a gradient
    saves: tuple[Tensor, ...]
    workspace_bytes: int  # needed during this operation's backward only
    weight_workspace_bytes: int  # the same of its weight, whatever the number of rows
    parameter_gradient_bytes: int  # gradient of this operation's own weight, kept after it
    shares_gradient: bool  # the gradient of the output is passed on to the inputs without a copy
    overwrites_saved: bool  # the inputs' gradients take the place of what was saved


class Moment(NamedTuple):
    """Bytes alive at one moment of a backward pass."""

    of_rows: int  # activations, their gradients and workspaces: all grow with the rows
    of_weights: int  # copies of weights, their gradients and workspaces: none does
    kept: int  # of rows, only because somebody keeps these tensors


@dataclass
class Tape:
    """The operations of one piece, in forward order."""

    sizes: list[int] = field(default_factory=list)
    weights: set[Tensor] = field(default_factory=set)  # copies of weights among the tensors
    operations: list[Operation] = field(default_factory=list)

    def tensor(self, size_bytes: int) -> Tensor:
        """A tensor that no operation of this tape produced."""
        self.sizes.append(size_bytes)
        return len(self.sizes) - 1

    def weight(self, size_bytes: int) -> Tensor:
        """A copy of a weight, for operations to save."""
        tensor = self.tensor(size_bytes)
        self.weights.add(tensor)
        return tensor

    def apply(
        self,
        inputs: tuple[Tensor, ...],
        size_bytes: int,
        saves: tuple[Tensor, ...] = (),
        *,
        workspace_bytes: int = 0,
        weight_workspace_bytes: int = 0,
        parameter_gradient_bytes: int = 0,
        shares_gradient: bool = False,
        overwrites_saved: bool = False,
        saves_output: bool = False,
    ) -> Tensor:
        """Record an operation that returns a new tensor of `size_bytes`."""
        output = self.tensor(size_bytes)
        if saves_output:
            saves = (*saves, output)
        self.operations.append(
            Operation(
                output,
                inputs,
                saves,
                workspace_bytes,
                weight_workspace_bytes,
                parameter_gradient_bytes,
                shares_gradient,
                overwrites_saved,
            )
        )
        return output

    @property
    def saved_bytes(self) -> int:
        """Bytes of rows that the forward pass leaves behind for the backward pass, each storage once."""
        saved = {tensor for operation in self.operations for tensor in operation.saves}
        return sum(self.sizes[tensor] for tensor in saved - self.weights)

    @property
    def saved_weight_bytes(self) -> int:
        """The same of copies of weights."""
        return sum(self.sizes[tensor] for tensor in self.weights)

    @cached_property
    def forward_bytes(self) -> int:
        """The most bytes alive while the tape runs forward without a graph, its first tensor apart.

        A tensor lives from its production to its last use; modelling code lets go of it then.
        """
        last_use = {tensor: index for index, operation in enumerate(self.operations) for tensor in operation.inputs}
        alive = peak = 0
        for index, operation in enumerate(self.operations):
            alive += self.sizes[operation.output]
            peak = max(peak, alive)
            for tensor in operation.inputs:
                if tensor != 0 and last_use.get(tensor) == index:
                    alive -= self.sizes[tensor]
                    del last_use[tensor]
        return peak

    def backward_bytes(self, kept: tuple[Tensor, ...] = ()) -> list[Moment]:
        """Bytes alive at each moment while the tape runs backward from its last output.

        Counts saved tensors, gradients, workspaces and parameter gradients.
        """
        return _Backward(self, kept).run()


class _Backward:
    """The state of a backward pass: what is saved, which gradient lives in which storage."""

    def __init__(self, tape: Tape, kept: tuple[Tensor, ...]) -> None:
        self.tape = tape
        self.alive = 0  # of rows
        self.weights = 0
        self.moments: list[Moment] = []
        self.holders: dict[Tensor, int] = {}
        for operation in tape.operations:
            for tensor in operation.saves:
                self._hold(tensor)
        self.kept = frozenset(kept)
        self.only_kept = sum(tape.sizes[tensor] for tensor in self.kept if tensor not in self.holders)
        self.gradients: dict[Tensor, int] = {}  # tensor -> storage
        self.storages: dict[int, list[int]] = {}  # storage -> [bytes, tensors that use it]
        self.next_storage = 0

    def run(self) -> list[Moment]:
        last = self.tape.operations[-1].output
        self.gradients[last] = self._allocate(self.tape.sizes[last])
        for operation in reversed(self.tape.operations):
            if operation.output in self.gradients:
                self._step(operation)
        return self.moments

    def _step(self, operation: Operation) -> None:
        incoming = self.gradients.pop(operation.output)
        self.weights += operation.parameter_gradient_bytes
        if operation.overwrites_saved:
            self._let_go(operation)
        produced = []
        for tensor in operation.inputs:
            if operation.shares_gradient and self.tape.sizes[tensor] == self.storages[incoming][0]:
                self.storages[incoming][1] += 1
                produced.append((tensor, incoming))
            else:
                produced.append((tensor, self._allocate(self.tape.sizes[tensor])))
        self.moments.append(
            Moment(
                self.alive + operation.workspace_bytes,
                self.weights + operation.weight_workspace_bytes,
                self.only_kept,
            )
        )
        self._release(incoming)
        if not operation.overwrites_saved:
            self._let_go(operation)
        for tensor, storage in produced:
            self._accumulate(tensor, storage)

    def _accumulate(self, tensor: Tensor, storage: int) -> None:
        held = self.gradients.get(tensor)
        if held is None:
            self.gradients[tensor] = storage
            return
        if self.storages[held][1] > 1:  # shared: the sum needs a storage of its own
            self.gradients[tensor] = self._allocate(self.tape.sizes[tensor])
            self.moments.append(Moment(self.alive, self.weights, self.only_kept))
            self._release(held)
        self._release(storage)

    def _allocate(self, size_bytes: int) -> int:
        self.next_storage += 1
        self.storages[self.next_storage] = [size_bytes, 1]
        self.alive += size_bytes
        return self.next_storage

    def _release(self, storage: int) -> None:
        entry = self.storages[storage]
        entry[1] -= 1
        if entry[1] == 0:
            self.alive -= entry[0]
            del self.storages[storage]

    def _hold(self, tensor: Tensor) -> None:
        count = self.holders.get(tensor, 0)
        if count == 0:
            self._count(tensor, self.tape.sizes[tensor])
        self.holders[tensor] = count + 1

    def _let_go(self, operation: Operation) -> None:
        for tensor in operation.saves:
            self.holders[tensor] -= 1
            if self.holders[tensor] == 0:
                size = self.tape.sizes[tensor]
                self._count(tensor, -size)
                if tensor in self.kept:
                    self.only_kept += size

    def _count(self, tensor: Tensor, size_bytes: int) -> None:
        if tensor in self.tape.weights:
            self.weights += size_bytes
        else:
            self.alive += size_bytes
