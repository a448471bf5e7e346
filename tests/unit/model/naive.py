"""The PLT once more, straight from plt.md's equations: one document, one token, one head at a time. Slow on purpose.

It shares no code with the model: no masks, no batching, no packing (documents are run one by one), explicit softmaxes.
Weights come in as the state_dict under the released names. Autograd flows through everything.
"""

import torch

from loopcoder_train.config import GateInput, LoopKind, ModelConfig


def naive_logits(weights: dict, config: ModelConfig, tokens: list[int]) -> torch.Tensor:
    """Logits [S, V] of one document."""
    final_norm = weights["model.norm.weight"]
    embeddings = [weights["model.embed_tokens.weight"][t] for t in tokens]
    hidden = stored = None
    for loop_number in range(1, config.num_loops + 1):
        if loop_number == 1:
            inputs = embeddings
        elif config.loop_kind is LoopKind.sequential:
            inputs = hidden
        else:
            inputs = []
            for i, embedding in enumerate(embeddings):
                previous = torch.zeros_like(embedding)
                if i > 0:
                    previous = hidden[i - 1]
                    if config.normalize_between_loops:
                        previous = _rms_norm(previous, final_norm, config)
                inputs.append(config.embedding_scale * embedding + config.hidden_scale * previous)
        full = loop_number == 1 or config.loop_kind is LoopKind.sequential
        hidden, own = _stack(weights, config, inputs, None if full else stored)
        if loop_number == 1:
            stored = own
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return torch.stack([head @ _rms_norm(h, final_norm, config) for h in hidden])


def _stack(weights, config, inputs, stored):
    kept = []
    for layer in range(config.num_layers):
        w = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        inputs, own = _layer(w, config, inputs, None if stored is None else stored[layer])
        kept.append(own)
    return inputs, kept


def _layer(w, config, inputs, stored):
    normed = [_rms_norm(x, w["input_layernorm.weight"], config) for x in inputs]
    queries = [_heads(w["self_attn.q_proj.weight"] @ x, config, i) for i, x in enumerate(normed)]
    keys = [_heads(w["self_attn.k_proj.weight"] @ x, config, i) for i, x in enumerate(normed)]
    values = [(w["self_attn.v_proj.weight"] @ x).split(config.head_dim) for x in normed]
    outputs = []
    for i, x in enumerate(inputs):
        heads = []
        for h in range(config.num_attention_heads):
            group = h // (config.num_attention_heads // config.num_key_value_heads)
            if stored is None:
                heads.append(_attend(queries[i][h], keys, values, group, range(i + 1)))
                continue
            window = range(max(0, i - config.window_left), i + 1)
            to_global = _attend(queries[i][h], *stored, group, range(i + 1))
            to_local = _attend(queries[i][h], keys, values, group, window)
            gate = _gate(w, config, x, queries[i][h], h)
            heads.append(gate * to_global + (1 - gate) * to_local)
        x = x + w["self_attn.o_proj.weight"] @ torch.cat(heads)
        y = _rms_norm(x, w["post_attention_layernorm.weight"], config)
        inner = w["mlp.gate_proj.weight"] @ y
        x = x + w["mlp.down_proj.weight"] @ (inner * torch.sigmoid(inner) * (w["mlp.up_proj.weight"] @ y))
        outputs.append(x)
    return outputs, (keys, values)


def _gate(w, config, layer_input, query, head):
    weight, bias = w["self_attn.plt_gate.weight"][head], w["self_attn.plt_gate.bias"][head]
    read = query
    if config.gate_input is GateInput.hidden:
        read = _rms_norm(layer_input, w["self_attn.plt_gate.gate_norm.weight"], config)
    return 1 / (1 + torch.exp(-(weight @ read + bias)))


def _attend(query, keys, values, group, visible):
    scores = torch.stack([query @ keys[j][group] for j in visible]) / config_scale(query)
    weights = torch.exp(scores - scores.max())
    weights = weights / weights.sum()
    return sum(p * values[j][group] for p, j in zip(weights, visible, strict=True))


def config_scale(query):
    """sqrt(head_dim)."""
    return len(query) ** 0.5


def _heads(x, config, position):
    return [_rope(part, position, config.rope_theta) for part in x.split(config.head_dim)]


def _rope(x, position, theta):
    half = len(x) // 2
    out = [None] * len(x)
    for i in range(half):
        angle = torch.tensor(position * theta ** (-2 * i / len(x)), dtype=torch.float64)
        out[i] = x[i] * torch.cos(angle) - x[i + half] * torch.sin(angle)
        out[i + half] = x[i] * torch.sin(angle) + x[i + half] * torch.cos(angle)
    return torch.stack(out)


def _rms_norm(x, weight, config):
    return x / torch.sqrt((x * x).mean() + config.rms_norm_eps) * weight
