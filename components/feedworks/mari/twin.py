"""MaRI (arXiv 2602.23105): the re-parameterised twin of a ranking model, as plain graphs.

Two graphs over the same weights: `one` scores the candidates of one request, `many` those of several, with
the request of each row beside them. Nothing of the conversion runs at scoring time.

Shape legend: B rows (candidates of all requests), R requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from feedworks.errors import ModelError
from feedworks.mari.accelerate import accelerated
from feedworks.mari.programs import load_program, save_program
from feedworks.storage import read_json, write_json

ONE, MANY, ORIGIN, KEPT = "one.pt2", "many.pt2", "origin.json", "kept.safetensors"


@dataclass(frozen=True)
class Piece:
    """Columns `start` to before `stop` of a model's weight: `rows` rows of a buffer from `row` and `column`.

    A negative `stop` says that the whole buffer is the weight.
    """

    buffer: str
    start: int
    stop: int
    rows: int
    row: int
    column: int


class Graph(nn.Module):
    """A program whose weights are looked up by name in a dict that several programs share.

    Attributes:
        program: as it is stored.
        names: of its weights, in the order in which `module` takes them before the inputs.
        module: what scores.
        tree: of the outputs.
        single: whether that is one tensor.
    """

    def __init__(self, program: ExportedProgram, weights: dict[str, Tensor], *, kernels: bool) -> None:
        super().__init__()
        self.program = program
        state = {**program.state_dict, **program.constants}
        self.names: list[str] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind != InputKind.USER_INPUT:
                name = str(spec.target).rpartition(".")[2]
                weights.setdefault(name, state[spec.target].detach())
                self.names.append(name)
        # Asking a program for its tree takes longer than scoring with a small one.
        self.tree = program.call_spec.out_spec
        self.single = self.tree.is_leaf()
        self.module = accelerated(program) if kernels else program.graph_module


class Twin(nn.Module):
    """Scores B candidates of R requests, with the user's inputs given once per request.

    Args:
        one: the program for one request: user inputs have one row.
        many: the program for several; its first input is the request of each row.
        sides: side of every input by name, in the order of the model's inputs.
        origin: where the model's own weights are: pieces of buffers by the model's names.
        kept: those of the model's weights that cannot be put together from the twin's.
        kernels: score with this house's kernels; False keeps to PyTorch's own operations.
    """

    def __init__(
        self,
        one: ExportedProgram,
        many: ExportedProgram,
        sides: Mapping[str, str],
        origin: Mapping[str, Sequence[Piece]],
        kept: Mapping[str, Tensor],
        *,
        kernels: bool = True,
    ) -> None:
        super().__init__()
        self.sides = dict(sides)
        self.origin = {name: tuple(pieces) for name, pieces in origin.items()}
        self.kept = dict(kept)
        weights: dict[str, Tensor] = {}
        self._one = Graph(one, weights, kernels=kernels)
        self._many = Graph(many, weights, kernels=kernels)
        for name, tensor in weights.items():
            self.register_buffer(name, tensor)

    @property
    def programs(self) -> tuple[ExportedProgram, ExportedProgram]:
        """The programs for one request and for several."""
        return self._one.program, self._many.program

    def graph(self, *, several: bool) -> Graph:
        """What scores the candidates of one request or of several."""
        return self._many if several else self._one

    @torch.no_grad()
    def forward(self, *inputs: Any, request_B: Tensor | None = None) -> Any:
        """Score; without gradients, as the graphs write over what is not read again.

        Args:
            inputs: as the model's, but those of the user have one row per request.
            request_B: int64, the request of each row, from 0 to below R; without it there is one request.

        Returns:
            What the model returns.

        Raises:
            ValueError: the number of inputs or of their rows is wrong.
        """
        leaves = inputs if inputs and isinstance(inputs[0], Tensor) else pytree.tree_leaves(inputs)
        self._check(leaves, request_B)
        graph = self._one if request_B is None else self._many
        weights = [self._buffers[name] for name in graph.names]
        given = leaves if request_B is None else (request_B, *leaves)
        outputs = graph.module.forward(*weights, *given)
        return outputs[0] if graph.single else pytree.tree_unflatten(outputs, graph.tree)

    def _check(self, leaves: Sequence[Tensor], request_B: Tensor | None) -> None:
        if len(leaves) != len(self.sides):
            raise ValueError(f"{len(leaves)} inputs; expected {len(self.sides)}: {', '.join(self.sides)}")
        for leaf, (name, side) in zip(leaves, self.sides.items(), strict=False):
            if side == "const":
                continue
            rows = leaf.shape[0] if leaf.ndim else 0
            if side == "user" and request_B is None and rows != 1:
                raise ValueError(f"input {name} has {rows} rows; give 1, or the request of each row")
            if side != "user" and request_B is not None and rows != request_B.shape[0]:
                raise ValueError(
                    f"input {name} has {rows} rows, but the request of {request_B.shape[0]} is given"
                )

    def merged_state(self) -> dict[str, Tensor]:
        """The model's own weights, bit for bit, by the names of its state."""
        state = dict(self.kept)
        for name, pieces in self.origin.items():
            blocks = [
                self.get_buffer(p.buffer)
                if p.stop < 0
                else self.get_buffer(p.buffer)[p.row : p.row + p.rows, p.column : p.column + p.stop - p.start]
                for p in pieces
            ]
            state[name] = torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0].clone()
        return state

    def save(self, folder: Path) -> None:
        """Write the programs as .pt2 files, and what is needed to merge the weights back."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_program(self._one.program, folder / ONE)
        save_program(self._many.program, folder / MANY)
        save_file({name: tensor.contiguous() for name, tensor in self.kept.items()}, folder / KEPT)
        origin = {name: [asdict(piece) for piece in pieces] for name, pieces in self.origin.items()}
        write_json(folder / ORIGIN, {"sides": list(self.sides.items()), "origin": origin})

    @classmethod
    def load(cls, folder: Path, *, kernels: bool = True) -> Twin:
        """Read what `save` wrote.

        Args:
            folder: that it was written to.
            kernels: see `Twin`.

        Raises:
            ModelError: a file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            facts = read_json(folder / ORIGIN)
            kept = load_file(folder / KEPT)
            origin = {name: [Piece(**piece) for piece in pieces] for name, pieces in facts["origin"].items()}
            sides = dict(facts["sides"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"twin {folder} cannot be read ({error}); make it again") from None
        one, many = load_program(folder / ONE), load_program(folder / MANY)
        return cls(one, many, sides, origin, kept, kernels=kernels)
