//! Conversion of a model's configuration from Python.

use crate::model::{Activation, Config, Experts, Local, Pairs, RopeConfig, Temperature, Yarn};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Reads an attribute of a Python object.
macro_rules! get {
    ($object:expr, $name:ident) => {
        $object.getattr(stringify!($name))?.extract()?
    };
}

type Any<'py> = Bound<'py, PyAny>;

/// The configuration of a model from the Python class `Config` (`python/q4hifi/runtime/architecture.py`).
pub(super) fn config_of(object: &Any<'_>) -> PyResult<Config> {
    let activation: String = get!(object, activation);
    let pairs: String = get!(object, pairs);
    let experts: Option<Any<'_>> = get!(object, experts);
    let local: Option<Any<'_>> = get!(object, local);
    let temperature: Option<Any<'_>> = get!(object, temperature);
    let unknown = |what: &str| PyValueError::new_err(format!("unknown: {what}"));
    Ok(Config {
        n_vocab: get!(object, n_vocab),
        n_layer: get!(object, n_layer),
        n_embd: get!(object, n_embd),
        n_ff: get!(object, n_ff),
        experts: experts.map(|experts| experts_of(&experts)).transpose()?,
        n_head: get!(object, n_head),
        n_head_kv: get!(object, n_head_kv),
        head_size: get!(object, head_size),
        norm_eps: get!(object, norm_eps),
        embedding_scale: get!(object, embedding_scale),
        attention_scale: get!(object, attention_scale),
        norm_heads: get!(object, norm_heads),
        post_norms: get!(object, post_norms),
        activation: match activation.as_str() {
            "silu" => Activation::Silu,
            "gelu" => Activation::Gelu,
            other => return Err(unknown(other)),
        },
        logit_softcap: get!(object, logit_softcap),
        pairs: match pairs.as_str() {
            "neighbours" => Pairs::Neighbours,
            "halves" => Pairs::Halves,
            other => return Err(unknown(other)),
        },
        rope: rope_of(&object.getattr("rope")?)?,
        local: local.map(|local| local_of(&local)).transpose()?,
        temperature: temperature.map(|t| temperature_of(&t)).transpose()?,
    })
}

fn experts_of(object: &Any<'_>) -> PyResult<Experts> {
    Ok(Experts { count: get!(object, count), used: get!(object, used) })
}

fn rope_of(object: &Any<'_>) -> PyResult<RopeConfig> {
    let yarn: Option<Any<'_>> = get!(object, yarn);
    Ok(RopeConfig {
        base: get!(object, base),
        dimensions: get!(object, dimensions),
        stretch: get!(object, stretch),
        yarn: yarn.map(|yarn| yarn_of(&yarn)).transpose()?,
        magnitude: get!(object, magnitude),
        factors: get!(object, factors),
    })
}

fn yarn_of(object: &Any<'_>) -> PyResult<Yarn> {
    Ok(Yarn { context: get!(object, context), fast: get!(object, fast), slow: get!(object, slow) })
}

fn local_of(object: &Any<'_>) -> PyResult<Local> {
    let rope = rope_of(&object.getattr("rope")?)?;
    Ok(Local { window: get!(object, window), rope, layers: get!(object, layers) })
}

fn temperature_of(object: &Any<'_>) -> PyResult<Temperature> {
    Ok(Temperature { scale: get!(object, scale), interval: get!(object, interval) })
}
