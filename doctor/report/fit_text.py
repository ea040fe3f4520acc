"""What `fit` says to a person: the verdict, why, what to add, and how each GPU would be filled."""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from doctor.command import ServerCommand
from doctor.command.change import changed
from doctor.consumers.memory_options import MEMORY_OPTIONS
from doctor.fit.sizes import GIB, Band
from doctor.fit.verdict import Answer, Cause, Fit, GpuMemory, RankMemory
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
_BARS_MOST = 16


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
            if self._fit.answer is Answer.DOES_NOT_FIT and self._fit.question.gpus:
                no = Text(
                    "no option makes it fit on these GPUs: take more or larger ones, or a "
                    "quantised checkpoint"
                )
                if self._fit.cause is Cause.FREE:
                    no = Text(
                        "no option makes it fit beside what others hold: stop what is no longer "
                        "needed, or take other GPUs; `vllm-doctor diagnose` says who holds them"
                    )
                yield from self._paragraph(self._say(no), "  ")
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
        rules = self._fit.question.release.version
        kinds = Counter((gpu.name, gpu.total) for gpu in self._fit.question.gpus)
        for (named, total), count in kinds.items():
            name = named or Text("GPU")
            said = Text("{count} x {name}, {total} each", count=count, name=name, total=_gib(total))
            if count == 1:
                said = Text("{name}, {total}", name=name, total=_gib(total))
            yield from self._paragraph(self._say(said), "")
        if not kinds:
            yield from self._paragraph(self._say(Text("no GPU is named")), "")
        if rules:
            yield from self._paragraph(self._say(Text("by the rules of vLLM {v}", v=rules)), "")

    def _bars(self) -> Iterator[Line]:
        """One for each GPU; the numbers of several that are filled alike stand below the last."""
        ranks = [one for one in self._fit.ranks if self._gpu(one) is not None]
        shown = ranks[:_BARS_MOST]
        for rank, later in itertools.zip_longest(shown, shown[1:]):
            pieces, missing = self._filled(rank)
            head = self._say(Text("GPU {number}", number=rank.rank)) + "  "
            yield (("", head), *_drawn(pieces, self._style.width - columns(head) - 1))
            if later is None or self._filled(later) != (pieces, missing):
                yield from self._flowing(self._numbers(pieces, missing), " " * columns(head))
        if len(ranks) > len(shown):
            more = Text("... and {count} more GPUs", count=len(ranks) - len(shown))
            yield (("", self._say(more)),)

    def _gpu(self, rank: RankMemory) -> GpuMemory | None:
        gpus = self._fit.question.gpus
        known = rank.weights is not None or rank.reserve is not None
        return gpus[rank.rank] if known and rank.rank < len(gpus) else None

    def _filled(self, rank: RankMemory) -> tuple[list[_Piece], int]:
        return _pieces(rank, self._fit.kv.needed, self._fit.question.gpus[rank.rank].total)

    def _numbers(self, pieces: Sequence[_Piece], missing: int) -> list[Line]:
        made = [self._number(piece) for piece in pieces]
        if missing > 0:
            made.append((("bold red", self._say(Text("missing: {size}", size=_gib(missing)))),))
        return made

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
        said = [*_cache_told(self._fit), *_found_told(self._fit)]
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


def _cache_told(fit: Fit) -> Iterator[Text]:
    """What a token and a request take, and how many the cache has room for."""
    kv = fit.kv
    each = next((one.kv_bytes_per_token for one in fit.ranks if one.kv_bytes_per_token), None)
    weights = fit.ranks[0].weights if fit.ranks else None
    if not fit.question.gpus and weights is not None:
        yield Text("{size} of weights on each GPU", size=_gib(weights, 2))
    if kv.needed is not None and kv.max_model_len is not None:
        yield Text(
            "one request of {tokens} tokens needs {size} of KV cache on each GPU",
            tokens=f"{kv.max_model_len:,}",
            size=_gib(kv.needed, 2),
        )
    if each is not None and kv.block_size is not None:
        yield Text(
            "{bytes} bytes a token, in blocks of {block}",
            bytes=f"{each:,}",
            block=f"{kv.block_size:,}",
        )
    if kv.tokens is not None and kv.tokens.high > 0:
        yield Text("GPU KV cache size: {tokens} tokens", tokens=_range(kv.tokens))
    if kv.longest is not None and kv.longest.high > 0:
        yield Text("longest --max-model-len: {tokens}", tokens=_range(kv.longest))
    if kv.concurrency:
        yield Text("requests of full length at once: {number}", number=f"{kv.concurrency:.2f}")


def _found_told(fit: Fit) -> Iterator[Text]:
    """Options that were looked for."""
    if fit.smallest_tp is not None:
        yield Text(
            "smallest --tensor-parallel-size that fits here: {size}",
            size=fit.smallest_tp,
        )
    if fit.most_utilization is not None:
        yield Text(
            "highest --gpu-memory-utilization that free memory allows: {part}",
            part=f"{fit.most_utilization:.2f}",
        )


def _with_flags(command: ServerCommand, flags: Sequence[str]) -> tuple[str, ...]:
    """The whole command with these in the place of what it says of the same options."""
    arguments: Sequence[str] = command.arguments
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        setting = name.replace("-", "_")
        arguments = changed(arguments, setting, value or "true", MEMORY_OPTIONS.strings)
    return command.with_arguments(arguments)


def _pieces(rank: RankMemory, needed: int | None, total: int) -> tuple[list[_Piece], int]:
    """What is known of a GPU, in the order of its bar, and how much more than vLLM may use of it
    that is, or than is free of it. What others hold may lie in the part that vLLM does not ask
    for."""
    reserve, may_use = rank.reserve, total if rank.requested is None else rank.requested
    parts = (
        ("blue", "█", Text("weights"), rank.weights, None),
        ("green", "▓", Text("KV cache"), needed, None),
        ("yellow", "▒", Text("reserve"), reserve.likely if reserve else None, reserve),
    )
    made = [
        _Piece(colour, sign, label, size, band)
        for colour, sign, label, size, band in parts
        if size is not None and size >= 0
    ]
    held, others = sum(piece.size for piece in made), rank.others or 0
    room = total - others
    if held < (least := min(may_use, room)):
        label = Text("free") if rank.weights is not None else Text("for the weights")
        made.append(_Piece("", "░", label, least - held))
    if others:
        made.append(_Piece("magenta", "▞", Text("other processes"), others))
    if (unused := room - max(held, may_use)) > 0:
        made.append(_Piece("dim", "·", Text("not used"), unused))
    return made, max(held, may_use) - min(may_use, room)


def _drawn(pieces: Sequence[_Piece], room: int) -> Iterator[tuple[str, str]]:
    """The bar, each piece as wide as its part of the whole; the ends are rounded, so that all come
    to the room."""
    total = sum(piece.size for piece in pieces)
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
