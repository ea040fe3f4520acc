"""What `fit` says to a person: the verdict, why, what to add, and how each GPU would be filled."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from doctor.command import ServerCommand
from doctor.command.change import changed
from doctor.consumers.memory_options import MEMORY_OPTIONS
from doctor.fit.sizes import GIB, Band
from doctor.fit.verdict import Answer, Fit, GpuMemory, RankMemory
from doctor.frozen import dataclass
from doctor.model import Text
from doctor.report.lines import Line, Style, columns, wrap
from doctor.report.translation import Translation

_HEADS = {
    Answer.FITS: ("bold green", "✓", Text("it fits")),
    Answer.TOO_CLOSE: ("bold yellow", "!", Text("too close to tell")),
    Answer.DOES_NOT_FIT: ("bold red", "✗", Text("it does not fit")),
    Answer.UNKNOWN: ("bold yellow", "?", Text("unknown")),
}
_SAME_MOST = 8  # bars; what further ranks hold is said by the tightest of them


def fit_lines(
    fit: Fit, command: ServerCommand | None, style: Style, language: Translation
) -> list[Line]:
    """The lines, of at most the style's width but for commands, which are never wrapped. `command`:
    the server's own, None where a profile is in force."""
    return list(_Page(fit, command, style, language).lines())


@dataclass(frozen=True)
class _Piece:
    """A part of a bar. `size` in bytes."""

    colour: str
    sign: str
    label: Text
    size: int
    band: Band | None = None


class _Page:
    def __init__(
        self, fit: Fit, command: ServerCommand | None, style: Style, language: Translation
    ) -> None:
        self._fit = fit
        self._command = command
        self._style = style
        self._say = language.of

    def lines(self) -> Iterator[Line]:
        fit = self._fit
        colour, sign, verdict = _HEADS[fit.answer]
        model = fit.question.model or self._say(Text("no model"))
        yield ((colour, f"{sign} {self._say(verdict)}: "), ("bold", model))
        yield from self._paragraph(self._say(fit.why), "  ")
        yield from self._advice()
        yield ()
        yield from self._machine()
        yield from self._bars()
        yield from self._cache()
        yield from self._sources()

    def _paragraph(self, text: str, indent: str, colour: str = "") -> Iterator[Line]:
        """Wrapped between words; Chinese, which has few, anywhere."""
        for line in wrap(text, self._style.width - len(indent)):
            for part in _cut(line, self._style.width - len(indent)):
                yield ((colour, f"{indent}{part}"),)

    # What to do.

    def _advice(self) -> Iterator[Line]:
        flags = self._fit.flags
        if not flags:
            return
        yield ()
        said = Text("fits with:") if self._fit.answer is not Answer.FITS else Text("may be added:")
        yield (("green", f"  {self._say(said)}"),)
        yield (("cyan", f"    {self._whole(flags)}"),)

    def _whole(self, flags: Sequence[str]) -> str:
        """The whole command with them, where there is one."""
        if self._command is None:
            return shlex.join(flags)
        return shlex.join(_with_flags(self._command, flags))

    # The machine.

    def _machine(self) -> Iterator[Line]:
        question = self._fit.question
        rules = question.release.version
        if question.gpus:
            first = question.gpus[0]
            said = Text(
                "{count} x {name}, {total} each; vLLM {version}",
                count=len(question.gpus),
                name=first.name,
                total=_gib(first.total),
                version=rules or "?",
            )
        else:
            said = Text("no GPU is named; vLLM {version}", version=rules or "?")
        yield from self._paragraph(self._say(said), "")

    def _bars(self) -> Iterator[Line]:
        ranks = [one for one in self._fit.ranks if one.weights is not None or one.reserve]
        for rank in ranks[:_SAME_MOST]:
            gpu = self._gpu(rank)
            if gpu is not None:
                yield from self._bar(rank, gpu)
        if len(ranks) > _SAME_MOST:
            more = Text("... and {count} more GPUs", count=len(ranks) - _SAME_MOST)
            yield (("", self._say(more)),)

    def _gpu(self, rank: RankMemory) -> GpuMemory | None:
        gpus = self._fit.question.gpus
        return gpus[rank.rank] if rank.rank < len(gpus) else None

    def _bar(self, rank: RankMemory, gpu: GpuMemory) -> Iterator[Line]:
        pieces = _pieces(rank, self._fit.kv.needed)
        held = sum(piece.size for piece in pieces)
        if held <= gpu.total:
            label = Text("free") if rank.weights is not None else Text("rest")
            pieces.append(_Piece("", "░", label, gpu.total - held))
        head = self._say(Text("GPU {number}", number=rank.rank)) + "  "
        room = self._style.width - columns(head) - 1
        yield (("", head), *_drawn(pieces, max(held, gpu.total), room))
        missing = held - gpu.total
        numbers = [self._number(piece) for piece in pieces]
        if missing > 0:
            numbers.append((("bold red", self._say(Text("missing {size}", size=_gib(missing)))),))
        yield from self._flowing(numbers, " " * columns(head))

    def _number(self, piece: _Piece) -> Line:
        band = piece.band
        text = f"{self._say(piece.label)} {_gib(piece.size)}"
        if band is not None and not band.exact:
            text += f" ({band.low / GIB:.1f}-{band.high / GIB:.1f})"
        return ((piece.colour, piece.sign), ("", f" {text}"))

    def _flowing(self, parts: list[Line], indent: str) -> Iterator[Line]:
        """As many as a line takes, three columns apart."""
        line: list[tuple[str, str]] = []
        used = 0
        for part in parts:
            width = self._style.columns(part)
            if line and used + 3 + width > self._style.width - len(indent):
                yield (("", indent), *line)
                line, used = [], 0
            if line:
                line.append(("", "   "))
                used += 3
            line += part
            used += width
        if line:
            yield (("", indent), *line)

    # The KV cache.

    def _cache(self) -> Iterator[Line]:
        kv, ranks = self._fit.kv, self._fit.ranks
        said: list[Text] = []
        each = next((one.kv_bytes_per_token for one in ranks if one.kv_bytes_per_token), None)
        if kv.needed is not None and kv.max_model_len is not None:
            said.append(
                Text(
                    "one request of {tokens} tokens needs {size} of KV cache on each GPU",
                    tokens=f"{kv.max_model_len:,}",
                    size=_gib(kv.needed, 2),
                )
            )
        if each is not None and kv.block_size is not None:
            said.append(
                Text(
                    "{bytes} bytes a token, in blocks of {block}",
                    bytes=f"{each:,}",
                    block=f"{kv.block_size:,}",
                )
            )
        if kv.tokens is not None:
            said.append(Text("GPU KV cache size: {tokens} tokens", tokens=_range(kv.tokens)))
        if kv.longest is not None:
            said.append(Text("longest --max-model-len: {tokens}", tokens=_range(kv.longest)))
        if kv.concurrency is not None:
            said.append(
                Text("requests of full length at once: {number}", number=f"{kv.concurrency:.2f}")
            )
        if self._fit.smallest_tp is not None:
            said.append(
                Text(
                    "smallest --tensor-parallel-size that fits here: {size}",
                    size=self._fit.smallest_tp,
                )
            )
        if said:
            yield ()
        for one in said:
            yield from self._paragraph(self._say(one), "")

    def _sources(self) -> Iterator[Line]:
        question, fit = self._fit.question, self._fit
        if question.config_from or fit.sources:
            yield ()
        if question.config_from:
            place = Text("config.json: {place}", place=question.config_from)
            yield from self._paragraph(self._say(place), "")
        for source in fit.sources:
            yield from self._paragraph(f"· {self._say(source)}", "")


def _with_flags(command: ServerCommand, flags: Sequence[str]) -> tuple[str, ...]:
    """The whole command with these in the place of what it says of the same options."""
    arguments: Sequence[str] = command.arguments
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        setting = name.replace("-", "_")
        arguments = changed(arguments, setting, value or "true", MEMORY_OPTIONS.strings)
    return command.with_arguments(arguments)


def _pieces(rank: RankMemory, needed: int | None) -> list[_Piece]:
    """What is known of a GPU, in the order of its bar."""
    reserve = rank.reserve
    parts = (
        ("magenta", "▞", Text("others"), rank.others or None, None),
        ("blue", "█", Text("weights"), rank.weights, None),
        ("green", "▓", Text("KV cache"), needed, None),
        ("yellow", "▒", Text("reserve"), reserve.likely if reserve else None, reserve),
    )
    return [
        _Piece(colour, sign, label, size, band)
        for colour, sign, label, size, band in parts
        if size is not None and size >= 0
    ]


def _drawn(pieces: Sequence[_Piece], total: int, room: int) -> Iterator[tuple[str, str]]:
    """The bar, each piece as wide as its part of the whole; the ends are rounded, so that all come
    to the room."""
    done = at = 0
    for piece in pieces:
        done += piece.size
        end = round(room * done / total) if total else 0
        yield (piece.colour, piece.sign * (end - at))
        at = end


def _cut(text: str, width: int) -> Iterator[str]:
    """Pieces of at most so many columns."""
    line, used = "", 0
    for sign in text:
        size = columns(sign)
        if used + size > width and line:
            yield line
            line, used = "", 0
        line += sign
        used += size
    yield line


def _gib(size: int, places: int = 1) -> str:
    return f"{size / GIB:.{places}f} GiB"


def _range(band: Band) -> str:
    if band.exact:
        return f"{band.likely:,}"
    return f"{band.likely:,} ({band.low:,}-{band.high:,})"
