"""Bodies that hold the fields of docs/openai_fields.md: for each field those that show what becomes of it.

By the field's path, as `client_fields` writes it. A sample is what is added to a body that has only what it must; a
refused field has values that would change something.
"""

from __future__ import annotations

from typing import Any

from gateway.protocol.response_create import INCLUDABLE, LOGPROBS
from gateway.protocol.response_items import OTHER_KINDS

Body = dict[str, Any]
Samples = dict[str, list[Body]]

BREAKPOINT = {"mode": "explicit", "ttl": "30m"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def message(role: str, content: Any = "hi", **fields: Any) -> Body:
    return {"messages": [{"role": role, "content": content} | fields]}


def parts(role: str, *parts: Body) -> Body:
    return message(role, list(parts))


def called(answer: Body) -> Body:
    """A call, and what came of it."""
    return {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, answer]}


TEXT_PART = {"type": "text", "text": "hi"}

SAMPLING_SAMPLES: Samples = {
    "model": [{"model": "some/model"}],
    "temperature": [{"temperature": 0.5}],
    "top_p": [{"top_p": 0.5}],
    "top_k": [{"top_k": 5}],
    "min_p": [{"min_p": 0.1}],
    "min_tokens": [{"min_tokens": 5}],
    "seed": [{"seed": 5}],
    "stop": [{"stop": "a"}, {"stop": ["a", "b"]}],
    "stop_token_ids": [{"stop_token_ids": [5]}],
    "presence_penalty": [{"presence_penalty": 0.5}],
    "frequency_penalty": [{"frequency_penalty": -0.5}],
    "repetition_penalty": [{"repetition_penalty": 1.2}],
    "logit_bias": [{"logit_bias": {"5": -100}}],
    "ignore_eos": [{"ignore_eos": True}],
    "use_prompt_format": [{"use_prompt_format": True}, {"use_prompt_format": False}],
    "stream": [{"stream": True}],
    "user": [{"user": "Ann"}],
    "prompt_cache_key": [{"prompt_cache_key": "terms"}],
    "metadata": [{"metadata": {"label": "a"}}],
    "moderation": [{"moderation": {"model": "omni", "policy": {"input": {"mode": "block"}}}}],
    "prompt_cache_options": [{"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}],
    "prompt_cache_retention": [{"prompt_cache_retention": "24h"}],
    "safety_identifier": [{"safety_identifier": "a"}],
    "service_tier": [{"service_tier": "flex"}],
    "store": [{"store": True}],
}

GENERATION_SAMPLES: Samples = {
    **SAMPLING_SAMPLES,
    "max_tokens": [{"max_tokens": 5}],
    "n": [{"n": 2}],
    "stream_options": [{"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}],
    "timing": [{"timing": True}],
    "structured_outputs": [{"structured_outputs": {"regex": "[a-z]+"}}],
}

MESSAGE_SAMPLES: Samples = {
    **{f"messages[{role}]": [message(role)] for role in ("system", "developer", "user", "assistant")},
    **{f"messages[{role}].name": [message(role, name="Ann")] for role in ("system", "developer", "user", "assistant")},
    **{
        f"messages[{role}].content{kind}": [parts(role, TEXT_PART), parts(role, TEXT_PART, TEXT_PART)]
        for role, kind in (("system", ""), ("developer", ""), ("user", "[text]"), ("assistant", "[text]"))
    },
    **{
        f"messages[{role}].content{kind}.prompt_cache_breakpoint": [
            parts(role, {**TEXT_PART, "prompt_cache_breakpoint": BREAKPOINT})
        ]
        for role, kind in (("system", ""), ("developer", ""), ("user", "[text]"), ("assistant", "[text]"))
    },
    "messages[user].content[image_url]": [
        parts("user", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}})
    ],
    "messages[user].content[input_audio]": [
        parts("user", {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}})
    ],
    "messages[user].content[file]": [parts("user", {"type": "file", "file": {"file_id": "file-1"}})],
    "messages[assistant].content[refusal]": [parts("assistant", {"type": "refusal", "refusal": "no"})],
    "messages[assistant].refusal": [message("assistant", refusal="no")],
    "messages[assistant].audio": [message("assistant", audio={"id": "audio-1"})],
    "messages[assistant].function_call": [message("assistant", function_call={"name": "weather", "arguments": "{}"})],
    "messages[assistant].annotations": [message("assistant", annotations=[{"type": "url_citation"}])],
    "messages[assistant].tool_calls": [message("assistant", tool_calls=[CALL])],
    "messages[assistant].tool_calls[custom]": [
        message("assistant", tool_calls=[{"id": "1", "type": "custom", "custom": {"name": "a", "input": "b"}}])
    ],
    "messages[tool]": [
        called({"role": "tool", "content": "hi", "tool_call_id": "call_1"}),
        called(
            {
                "role": "tool",
                "content": [{**TEXT_PART, "prompt_cache_breakpoint": BREAKPOINT}],
                "tool_call_id": "call_1",
            }
        ),
    ],
    "messages[function]": [message("function", name="weather")],
}

CHAT_SAMPLES: Samples = {
    **GENERATION_SAMPLES,
    **MESSAGE_SAMPLES,
    "messages": [message("user")],
    "max_completion_tokens": [{"max_completion_tokens": 5}],
    "logprobs": [{"logprobs": True}],
    "top_logprobs": [{"logprobs": True, "top_logprobs": 2}],
    "response_format": [{"response_format": {"type": "text"}}],
    "response_format[json_object]": [{"response_format": {"type": "json_object"}}],
    "response_format[json_schema]": [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "place", "description": "One.", "schema": SCHEMA, "strict": True},
            }
        }
    ],
    "tools": [{"tools": [TOOL]}],
    "tools[function]": [{"tools": [TOOL]}],
    "tools[custom]": [{"tools": [{"type": "custom", "custom": {"name": "code"}}]}],
    "tool_choice": [{"tools": [TOOL], "tool_choice": choice} for choice in ("none", "auto", "required")],
    "tool_choice[function]": [
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ],
    "tool_choice[custom]": [{"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "code"}}}],
    "tool_choice[allowed_tools]": [
        {
            "tools": [TOOL],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
        }
    ],
    "parallel_tool_calls": [{"parallel_tool_calls": False}],
    "functions": [{"functions": [{"name": "weather", "description": "Of a city.", "parameters": SCHEMA}]}],
    "function_call": [{"function_call": {"name": "weather"}}],
    "reasoning_effort": [{"reasoning_effort": "high"}],
    "verbosity": [{"verbosity": "low"}],
    "modalities": [{"modalities": ["text", "audio"]}],
    "audio": [{"audio": {"format": "wav", "voice": "alloy"}}],
    "prediction": [{"prediction": {"type": "content", "content": "hi"}}],
    "web_search_options": [{"web_search_options": {"search_context_size": "low"}}],
    "chat_template_kwargs": [{"chat_template_kwargs": {"enable_thinking": False}}],
    "continue_final_message": [message("assistant") | {"continue_final_message": True}],
    "add_generation_prompt": [
        message("assistant") | {"continue_final_message": True, "add_generation_prompt": False},
        {"add_generation_prompt": True},
    ],
}

TEXT_SAMPLES: Samples = {
    **GENERATION_SAMPLES,
    "prompt": [{"prompt": prompt} for prompt in ("a", ["a", "b"], [1, 2], [[1], [2]])],
    "best_of": [{"best_of": 2}],
    "logprobs": [{"logprobs": 2}],
    "echo": [{"echo": True}],
    "suffix": [{"suffix": "end"}],
}

EMBEDDING_SAMPLES: Samples = {
    "model": [{"model": "some/model"}],
    "input": [{"input": texts} for texts in ("a", ["a", "b"], [1, 2], [[1], [2]])],
    "encoding_format": [{"encoding_format": "float"}, {"encoding_format": "base64"}],
    "dimensions": [{"dimensions": 8}],
    "user": [{"user": "Ann"}],
}


def talk(**fields: Any) -> Body:
    return {"prompt": None, "messages": [{"role": "user", "content": "hi"}]} | fields


TOKENIZE_SAMPLES: Samples = {
    "model": [{"model": "some/model"}],
    "prompt": [{"prompt": "a"}],
    "messages": [talk()],
    "return_token_strs": [{"return_token_strs": True}],
    "add_special_tokens": [{"add_special_tokens": False}],
    "add_generation_prompt": [talk(add_generation_prompt=False)],
    "continue_final_message": [message("assistant") | {"prompt": None, "continue_final_message": True}],
    "use_prompt_format": [{"use_prompt_format": True}],
    "tools": [talk(tools=[TOOL])],
    "chat_template_kwargs": [talk(chat_template_kwargs={"enable_thinking": False})],
    "chat_template": [talk(chat_template="{{ messages }}")],
    "mm_processor_kwargs": [talk(mm_processor_kwargs={"size": 5})],
}

DETOKENIZE_SAMPLES: Samples = {"model": [{"model": "some/model"}], "tokens": [{"tokens": [1, 2]}]}


FLAT_TOOL = {"type": "function", **FUNCTION}
FLAT_NAMED = {"type": "function", "name": "weather"}
INPUT_TEXT = {"type": "input_text", "text": "hi"}
OUTPUT_TEXT = {"type": "output_text", "text": "hi"}
IMAGE = {"type": "input_image", "detail": "low", "file_id": "file-1", "image_url": "data:image/png;base64,AA=="}
FILE = {"type": "input_file", "file_id": "file-1", "filename": "a.pdf"}
FLAT_CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
TOKEN = {"token": "hi", "bytes": [104, 105], "logprob": -0.5}
OTHER_TOOLS = (
    "apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "file_search", "image_generation",
    "local_shell", "mcp", "namespace", "programmatic_tool_calling", "shell", "tool_search", "web_search",
    "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11",
)  # fmt: skip
OTHER_CHOICES = (
    "apply_patch", "code_interpreter", "computer", "computer_use", "computer_use_preview", "custom", "file_search",
    "image_generation", "mcp", "programmatic_tool_calling", "shell", "web_search_preview",
    "web_search_preview_2025_03_11",
)  # fmt: skip


def item(kind: str, **fields: Any) -> Body:
    return {"input": [{"type": kind} | fields]}


def said(content: Any, **fields: Any) -> Body:
    return item("message", **{"role": "user", "content": content} | fields)


def call(**fields: Any) -> Body:
    return {"input": [FLAT_CALL | fields]}


def answer(output: Any = "sunny", **fields: Any) -> Body:
    return {"input": [FLAT_CALL, {"type": "function_call_output", "call_id": "call_1", "output": output} | fields]}


def flat_tool(**fields: Any) -> Body:
    return {"tools": [FLAT_TOOL | fields]}


def chosen(choice: Any) -> Body:
    return {"tools": [FLAT_TOOL], "tool_choice": choice}


ITEM_SAMPLES: Samples = {
    "input": [{"input": "hi"}, said("hi")],
    "input[message]": [
        *(item("message", role=role, content="hi") for role in ("user", "assistant", "system", "developer")),
        said("hi", id="msg_1", status="completed"),
    ],
    "input[message].content[input_text]": [said([INPUT_TEXT | {"prompt_cache_breakpoint": BREAKPOINT}])],
    "input[message].content[output_text]": [
        said([OUTPUT_TEXT | {"annotations": [], "logprobs": [TOKEN | {"top_logprobs": [TOKEN]}]}], role="assistant")
    ],
    "input[message].content[output_text].annotations": [
        said([OUTPUT_TEXT | {"annotations": [{"type": "file_path", "file_id": "file-1", "index": 0}]}])
    ],
    "input[message].content[input_image]": [said([IMAGE])],
    "input[message].content[input_file]": [said([FILE])],
    "input[message].content[refusal]": [said([{"type": "refusal", "refusal": "no"}], role="assistant")],
    "input[message].phase": [said("hi", role="assistant", phase="commentary")],
    "input[function_call]": [call(id="fc_1", status="completed")],
    "input[function_call].async": [call(**{"async": True})],
    "input[function_call].caller": [call(caller={"type": "program", "caller_id": "a"})],
    "input[function_call].namespace": [call(namespace="crm")],
    "input[function_call_output]": [answer(id="fco_1", status="completed", name="weather"), answer([INPUT_TEXT])],
    "input[function_call_output].output[input_text]": [answer([INPUT_TEXT | {"prompt_cache_breakpoint": BREAKPOINT}])],
    "input[function_call_output].output[input_image]": [answer([IMAGE])],
    "input[function_call_output].output[input_file]": [answer([FILE])],
    "input[function_call_output].caller": [answer(caller={"type": "program", "caller_id": "a"})],
    "input[function_call_output].namespace": [answer(namespace="crm")],
    "input[reasoning]": [
        item("reasoning", id="rs_1", content=[{"type": "reasoning_text", "text": "hm"}], status="completed")
    ],
    "input[reasoning].summary": [item("reasoning", summary=[{"type": "summary_text", "text": "hm"}])],
    "input[reasoning].encrypted_content": [item("reasoning", encrypted_content="AA==")],
    "input[item_reference]": [item("item_reference", id="msg_1")],
    **{f"input[{kind}]": [item(kind)] for kind in OTHER_KINDS},
}

RESPONSE_SAMPLES: Samples = {
    **SAMPLING_SAMPLES,
    **ITEM_SAMPLES,
    "instructions": [{"instructions": "Be brief."}],
    "previous_response_id": [{"previous_response_id": "resp_1"}],
    "max_output_tokens": [{"max_output_tokens": 5}],
    "include": [{"include": list(INCLUDABLE)}],
    "top_logprobs": [{"include": [LOGPROBS], "top_logprobs": 2}],
    "text": [{"text": {"format": {"type": "text"}}}],
    "text.format[json_object]": [{"text": {"format": {"type": "json_object"}}}],
    "text.format[json_schema]": [
        {
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "place",
                    "description": "One.",
                    "schema": SCHEMA,
                    "strict": True,
                }
            }
        }
    ],
    "text.verbosity": [{"text": {"verbosity": "low"}}],
    "reasoning": [{"reasoning": {"effort": "high"}}],
    "reasoning.context": [{"reasoning": {"context": "all_turns"}}],
    "reasoning.generate_summary": [{"reasoning": {"generate_summary": "concise"}}],
    "reasoning.mode": [{"reasoning": {"mode": "pro"}}],
    "reasoning.summary": [{"reasoning": {"summary": "detailed"}}],
    "tools": [{"tools": []}, flat_tool()],
    "tools[function]": [flat_tool()],
    "tools[function].allowed_callers": [flat_tool(allowed_callers=["programmatic"])],
    "tools[function].async": [flat_tool(**{"async": True})],
    "tools[function].defer_loading": [flat_tool(defer_loading=True)],
    "tools[function].output_schema": [flat_tool(output_schema=SCHEMA)],
    **{f"tools[{kind}]": [{"tools": [{"type": kind}]}] for kind in OTHER_TOOLS},
    "tool_choice": [chosen(choice) for choice in ("none", "auto", "required")],
    "tool_choice[function]": [chosen(FLAT_NAMED)],
    "tool_choice[allowed_tools]": [chosen({"type": "allowed_tools", "mode": "required", "tools": [FLAT_NAMED]})],
    **{f"tool_choice[{kind}]": [chosen({"type": kind})] for kind in OTHER_CHOICES},
    "parallel_tool_calls": [{"parallel_tool_calls": False}],
    "stream_options": [{"stream": True, "stream_options": {"include_obfuscation": True}}],
    "access_programs": [{"access_programs": {"cyber": True}}],
    "background": [{"background": True}],
    "background_options": [{"background_options": {"completion_window": "24h"}}],
    "context_management": [{"context_management": [{"type": "compaction", "compact_threshold": 1000}]}],
    "conversation": [{"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}}],
    "image": [{"image": {"context_compression": True}}],
    "max_tool_calls": [{"max_tool_calls": 1}],
    "prompt": [{"prompt": {"id": "pmpt_1"}}],
    "truncation": [{"truncation": "auto"}],
}
