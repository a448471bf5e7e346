"""One name for one parameter, in every engine, layout and number of loops: the released Hugging Face names."""

from loopcoder_train.config import GateInput, ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def layer_parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of one layer, by its name inside the layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, head_dim = config.num_attention_heads, config.head_dim
    query_size, kv_size = heads * head_dim, config.num_key_value_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query_size, hidden),
        "self_attn.k_proj.weight": (kv_size, hidden),
        "self_attn.v_proj.weight": (kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, query_size),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.has_gates:
        by_hidden = config.gate_input is GateInput.hidden
        shapes["self_attn.plt_gate.weight"] = (heads, hidden if by_hidden else head_dim)
        shapes["self_attn.plt_gate.bias"] = (heads,)
        if by_hidden:
            shapes["self_attn.plt_gate.gate_norm.weight"] = (hidden,)
    return shapes


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the model, by its full name. No tensor is made."""
    shapes = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer_index in range(config.num_layers):
        for name, shape in layer_parameter_shapes(config).items():
            shapes[f"model.layers.{layer_index}.{name}"] = shape
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def is_decayed(name: str) -> bool:
    """Whether AdamW decays this parameter: matrices and embeddings yes, biases and norm weights no."""
    return not name.endswith((".bias", "norm.weight"))


def is_gate(name: str) -> bool:
    """Whether this parameter belongs to a G-SWA gate, which a model of one loop does not have."""
    return ".plt_gate." in name
