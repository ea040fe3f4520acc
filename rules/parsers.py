"""The parsers of the model's answers: those that there are, and those of its family."""

from __future__ import annotations

from collections.abc import Sequence

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers import names, tables
from doctor.consumers.options import GivenOptions
from doctor.consumers.parsers import family_of
from doctor.fixes import Doctor
from doctor.probes.models import ServedModel
from doctor.probes.parsers import ReasoningParsers, ToolParsers
from doctor.probes.served import Profile
from doctor.probes.wheels import Vllm


@rule("reasoning-parser-unknown", Severity.ERROR, Stage.MODEL)
def reasoning_parser_unknown(
    vllm: Vllm, parsers: ReasoningParsers | None, profile: Profile
) -> Finding | None:
    """The installed vLLM has no reasoning parser of this name.

    --reasoning-parser names how the model marks its reasoning. Reasoning parsers and tool parsers
    are two lists, and each release has its own: there is a tool parser `glm47`, and from 0.24 on a
    reasoning parser of that name too, not before. GLM-4.5, 4.6 and 4.7 all use `glm45`. The parser
    of a plugin is not in vLLM's own list: `--accept reasoning-parser-unknown`.

    Manual: `--set reasoning_parser=NAME` with a name that the report lists.

    Sources: vllm/reasoning/__init__.py, vllm#33349

    See also: tool-parser-unknown, parser-advised
    """
    name = profile.reasoning_parser
    if not name:
        raise NotApplicable(Text("the profile names no reasoning parser"))
    if parsers is None:
        raise _not_told(vllm, tables.REASONING)
    if name in parsers.names:
        return None
    _must_be_no_plugin(profile, name, "reasoning_parser_plugin")
    return _no_parser(vllm, "reasoning", "reasoning_parser", name, parsers.names)


@rule("tool-parser-unknown", Severity.ERROR, Stage.MODEL)
def tool_parser_unknown(
    vllm: Vllm, parsers: ToolParsers | None, profile: Profile
) -> Finding | None:
    """The installed vLLM has no tool parser of this name.

    --tool-call-parser names how the model writes its tool calls, and each release of vLLM has its
    own list. GLM-4.7 uses `glm47` (older releases: `glm45`, before that `glm4_moe`). vLLM checks
    the name only together with --enable-auto-tool-choice: without that flag a wrong name goes
    unnoticed until a request has tools. --enable-auto-tool-choice without a parser is an error as
    well. A parser newer than the installed vLLM needs a newer vLLM; the parser of a plugin is not
    in vLLM's own list: `--accept tool-parser-unknown`.

    Manual: `--set tool_call_parser=NAME` with a name that the report lists, or
    `--set enable_auto_tool_choice=false`.

    Sources: vllm/tool_parsers/__init__.py, vllm#9312, GLM-4.5#58

    See also: reasoning-parser-unknown, parser-advised, tool-choice-not-enabled,
    glm47-tool-parser-empty-args
    """
    name, asked = profile.tool_call_parser, profile.enable_auto_tool_choice
    if name is None:
        if not asked:
            raise NotApplicable(Text("the profile names no tool parser"))
        off = Doctor("diagnose", ("--set", "enable_auto_tool_choice=false"))
        return Finding(
            Text("enable_auto_tool_choice is on, and no tool parser is named"),
            (Text("--enable-auto-tool-choice requires --tool-call-parser"),),
            (Fix(Text("name the model's parser, or leave it off"), (off,), Needs.PERSON),),
        )
    if parsers is None:
        raise _not_told(vllm, tables.TOOLS)
    if name in parsers.names:
        return None
    _must_be_no_plugin(profile, name, "tool_parser_plugin")
    severity = None if asked else Severity.WARNING
    return _no_parser(vllm, "tool", "tool_call_parser", name, parsers.names, severity)


def _not_told(vllm: Vllm, file: str) -> Missing:
    return Missing(Text("{path} does not say which parsers there are", path=vllm.root / file))


def _must_be_no_plugin(profile: Profile, name: str, option: str) -> None:
    """Raises Missing where a plugin may bring the parser: its code is not run."""
    if plugin := GivenOptions(profile.options).word(option):
        raise Missing(
            Text("whether {plugin} has a parser {name} is not known", plugin=plugin, name=name)
        )


def _no_parser(
    vllm: Vllm,
    kind: str,
    key: str,
    name: str,
    names: tuple[str, ...],
    severity: Severity | None = None,
) -> Finding:
    from difflib import get_close_matches

    near = get_close_matches(name, names, 1)
    take = tuple(
        Fix(
            Text("take {near}, if that is what the model writes", near=one),
            (Doctor("diagnose", ("--set", f"{key}={one}")),),
            Needs.PERSON,
        )
        for one in near
    )
    return Finding(
        Text(
            "vLLM {version} has no {kind} parser {name}",
            version=vllm.version,
            kind=kind,
            name=name,
        ),
        (Text("it has {names}", names=names),),
        take,
        severity,
    )


@rule("parser-advised", Severity.INFO, Stage.SHELL)
def parser_advised(
    reasoning: ReasoningParsers | None,
    tools: ToolParsers | None,
    served: ServedModel,
    profile: Profile,
) -> Finding | None:
    """The model's own parsers are not what the server is started with.

    Without a reasoning parser the thoughts of a model stay in `content`, `</think>` among them, and
    `reasoning` is null; without a tool parser a tool call comes back as text, and a request with
    tools is refused (`"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser
    to be set`). The parser of another family finds nothing, or takes the whole answer for a
    thought. vLLM chooses none by itself. A server that only completes text, or whose clients parse
    the answers themselves, needs none.

    The advice is that of vLLM's documentation for the family; a parser that the installed vLLM does
    not have is not named. Nothing is passed that was not said: `launch` passes what the profile or
    the command says.

    Manual: `--set reasoning_parser=NAME --set tool_call_parser=NAME --set
    enable_auto_tool_choice=true`, as the report names them.

    Sources: docs.vllm.ai (features/reasoning_outputs and features/tool_calling),
    rules/tables/parsers.toml

    See also: reasoning-parser-unknown, tool-parser-unknown, tool-choice-not-enabled
    """
    config, pooling = served.config, GivenOptions(profile.options).word("runner") == "pooling"
    types = (config.model_type or profile.needs.model_type, config.text_model_type)
    family = family_of(profile.model or "", types)
    if family is None or config.pooling or pooling:
        raise NotApplicable(Text("no parser is known for this model"))
    if reasoning is None or tools is None:
        raise NotApplicable(Text("this vLLM's parsers are not known"))
    thoughts = _better(profile.reasoning_parser, family.reasoning, reasoning.names)
    calls = _better(profile.tool_call_parser, family.tools, tools.names)
    right = profile.tool_call_parser in family.tools
    switch = bool(calls or right) and not profile.enable_auto_tool_choice
    advised = {
        "reasoning_parser": thoughts,
        "tool_call_parser": calls,
        "enable_auto_tool_choice": "true" if switch else None,
    }
    sets = [f"{key}={value}" for key, value in advised.items() if value]
    if not sets:
        return None
    options = [
        names.OPTIONS[key] + (f" {v}" if v != "true" else "") for key, v in advised.items() if v
    ]
    words = tuple(word for one in sets for word in ("--set", one))
    given = {
        "--reasoning-parser": profile.reasoning_parser if thoughts else None,
        "--tool-call-parser": profile.tool_call_parser if calls else None,
    }
    others = [f"{option} {name}" for option, name in given.items() if name]
    return Finding(
        Text("{model} is served best with {options}", model=profile.model, options=options),
        (
            *((Text("the server is started with {others}", others=others),) if others else ()),
            Text("source: {source}", source=family.source),
        ),
        (Fix(Text("start it so"), (Doctor("diagnose", words),), Needs.PERSON),),
    )


def _better(given: str | None, family: Sequence[str], installed: Sequence[str]) -> str | None:
    """The first of the family's parsers that this vLLM has, where none of them is given."""
    return None if given in family else next((n for n in family if n in installed), None)
