//! Against slopes found by moving every weight.

use super::layer::LayerWork;
use super::products::{ROWS, multiply_transposed};
use crate::block::TensorType;
use crate::isa::Isa;
use crate::matmul::Matrix;
use crate::model::config::Config;
use crate::model::forward::Model;
use crate::model::ops::{add, apply, norm};
use crate::model::role::Role;
use crate::model::sampling::{Sampler, Sampling};
use crate::model::weights::Need;
use crate::model::{Activation, Builder, Experts, Local, Pairs, RopeConfig, Temperature};
use crate::rows::Source;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

type Weights = HashMap<(Role, Option<usize>), Vec<f32>>;

fn plain() -> Config {
    let rope = |base| RopeConfig {
        base,
        dimensions: 16,
        stretch: 1.0,
        yarn: None,
        magnitude: 1.0,
        factors: vec![],
    };
    Config {
        n_vocab: 12,
        n_layer: 2,
        n_embd: 16,
        n_ff: 8,
        experts: None,
        n_head: 2,
        n_head_kv: 1,
        head_size: 16,
        norm_eps: 1e-5,
        embedding_scale: 1.0,
        attention_scale: 0.25,
        norm_heads: false,
        post_norms: false,
        activation: Activation::Silu,
        logit_softcap: None,
        pairs: Pairs::Neighbours,
        rope: rope(100.0),
        local: None,
        temperature: None,
    }
}

fn mixture() -> Config {
    Config { experts: Some(Experts { count: 5, used: 2 }), norm_heads: true, ..plain() }
}

/// Everything that an architecture may have.
fn rich() -> Config {
    let plain = plain();
    Config {
        embedding_scale: 1.5,
        norm_heads: true,
        post_norms: true,
        activation: Activation::Gelu,
        logit_softcap: Some(3.0),
        pairs: Pairs::Halves,
        local: Some(Local { window: 3, rope: plain.rope.clone(), layers: vec![true, false] }),
        temperature: Some(Temperature { scale: 0.3, interval: 2 }),
        ..plain
    }
}

fn weights(config: &Config, tied: bool) -> Weights {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut weights = Weights::new();
    for &role in Role::ALL {
        let layers: Vec<_> = match role.in_layers() {
            true => (0..config.n_layer).map(Some).collect(),
            false => vec![None],
        };
        let [rows, n] = role.shape(config);
        let unused = role.need(config) == Need::Unused;
        if unused || tied && role == Role::Output {
            continue;
        }
        for layer in layers {
            let centre = f32::from(u8::from(role.name().ends_with("norm")));
            let values = (0..rows * n).map(|_| match role {
                // Σᵢ cᵢ w² is the same whatever the shares cᵢ are, which differ between experts
                Role::FfnGateExps | Role::FfnUpExps | Role::FfnDownExps => 0.3 * random().signum(),
                Role::FfnGateInp => 4.0 * random(), // so that no small step changes the choice
                _ => centre + random(),
            });
            let values = values.collect();
            weights.insert((role, layer), values);
        }
    }
    weights
}

fn model<'a>(config: &Config, weights: &'a Weights) -> Model<'a> {
    let mut builder = Builder::new(config.clone()).unwrap();
    for (&(role, layer), values) in weights {
        let n = role.shape(config)[1];
        let matrix = Matrix::new(Source::from_f32(values, n).unwrap());
        builder.add(role.name(), layer, matrix).unwrap();
    }
    Model::new(builder).unwrap()
}

/// Log-probabilities by the forward pass above.
fn logits(model: &Model<'_>, tokens: &[u32]) -> Vec<f32> {
    let (config, isa) = (&model.config, model.isa);
    let n = config.n_embd;
    let mut states = vec![0f32; tokens.len() * n];
    for (row, &token) in states.chunks_exact_mut(n).zip(tokens) {
        model.tensors.token_embd.row(isa, token as usize, row);
        row.iter_mut().for_each(|x| *x *= config.embedding_scale);
    }
    for (number, layer) in model.tensors.layers.iter().enumerate() {
        let [cos, sin] = model.angles(number, tokens.len());
        let work = LayerWork { number, layer, cos: &cos, sin: &sin };
        let mut forward = work.forward(isa, config, &states).unwrap();
        let post = layer.ffn_post_norm.as_deref();
        add(isa, config, &mut forward.between, &mut forward.down, post);
        states = forward.between;
    }
    let mut normed = vec![0f32; states.len()];
    norm(isa, config, &states, &model.tensors.output_norm, &mut normed);
    let mut logits = vec![0f32; tokens.len() * config.n_vocab];
    apply(isa, &model.tensors.output, &normed, &mut logits).unwrap();
    if let Some(cap) = config.logit_softcap {
        logits.iter_mut().for_each(|x| *x = (*x / cap).tanh() * cap);
    }
    logits
}

fn log_probability(row: &[f32], token: u32) -> f64 {
    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
    f64::from(row[token as usize]) - sum.ln()
}

const TOKENS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];
const SCORED: Range<usize> = 4..9;

fn drawn(logits: &[f32], n_vocab: usize) -> Vec<u32> {
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 5 };
    let mut sampler = Sampler::new(sampling);
    let rows = logits[SCORED.start * n_vocab..SCORED.end * n_vocab].chunks_exact(n_vocab);
    rows.map(|row| sampler.sample(row).unwrap()).collect()
}

/// Against the slopes that are found by moving each weight.
fn check(config: &Config, tied: bool) {
    let mut weights = weights(config, tied);
    let found = {
        let model = model(config, &weights);
        model.fisher(&TOKENS, SCORED, 5, &AtomicBool::new(false)).unwrap()
    };
    let n_vocab = config.n_vocab;
    let targets = drawn(&logits(&model(config, &weights), &TOKENS), n_vocab);
    // the second layer, whose way back is that of the first, by one matrix
    let is_checked = |(role, layer): &(Role, Option<usize>)| {
        let kept = *role == Role::FfnGateInp;
        role.shape(config)[0] > 1 && (*layer != Some(1) || *role == Role::AttnK) && !kept
    };
    let matrices: Vec<_> = weights.keys().copied().filter(is_checked).collect();
    for (role, layer) in matrices {
        if tied && role == Role::TokenEmbd {
            continue; // its parts are noted apart
        }
        let [rows, n] = role.shape(config);
        let mut expected = 0.0;
        for row in 0..rows {
            let values = &weights[&(role, layer)][row * n..][..n];
            let columns = found.of(role, layer).unwrap();
            let squares = values.iter().zip(columns).map(|(&w, c)| c * f64::from(w).powi(2));
            let energy = squares.sum::<f64>() / columns.iter().sum::<f64>();
            for i in row * n..(row + 1) * n {
                let value = weights[&(role, layer)][i];
                let mut moved = |step: f32| {
                    weights.get_mut(&(role, layer)).unwrap()[i] = value + step;
                    let logits = logits(&model(config, &weights), &TOKENS);
                    let rows = logits.chunks_exact(n_vocab).skip(SCORED.start);
                    rows.zip(&targets).map(|(row, &y)| log_probability(row, y)).sum::<f64>()
                };
                let slope = (moved(5e-3) - moved(-5e-3)) / 1e-2;
                weights.get_mut(&(role, layer)).unwrap()[i] = value;
                expected += energy * slope * slope;
            }
        }
        let got: f64 = found.of(role, layer).unwrap().iter().sum();
        let (name, error) = (role.name(), (got / expected - 1.0).abs());
        assert!(error < 0.02, "{name} of layer {layer:?}: {got}, by moving {expected}");
    }
}

#[test]
fn it_is_the_square_of_the_slopes() {
    check(&plain(), false);
}

#[test]
fn it_is_that_with_all_that_an_architecture_may_have() {
    check(&rich(), true);
}

#[test]
fn it_is_that_of_all_experts_together() {
    check(&mixture(), false);
}

#[test]
fn a_router_has_none() {
    let (config, cancelled) = (mixture(), AtomicBool::new(false));
    let weights = weights(&config, false);
    let found = model(&config, &weights).fisher(&TOKENS, SCORED, 5, &cancelled).unwrap();
    assert!(found.of(Role::FfnGateInp, Some(0)).is_none());
    assert_eq!(found.of(Role::FfnDownExps, Some(0)).unwrap().len(), config.n_ff);
}

/// The forward pass that is taken back is that of [`Model::evaluate`].
#[test]
fn its_forward_pass_is_the_models() {
    for (config, tied) in [(plain(), false), (rich(), true), (mixture(), false)] {
        let weights = weights(&config, tied);
        let model = model(&config, &weights);
        let mut expected = vec![0f32; TOKENS.len() * config.n_vocab];
        let request = crate::model::Request {
            tokens: &TOKENS,
            wanted: 0..TOKENS.len(),
            logits: &mut expected,
            collector: None,
            cancelled: &AtomicBool::new(false),
        };
        model.evaluate(&mut model.sequence(), request).unwrap();
        for (got, expected) in logits(&model, &TOKENS).iter().zip(&expected) {
            assert!((got - expected).abs() < 0.01, "{got} {expected}"); // f16 keys and values
        }
    }
}

#[test]
fn a_matrix_of_any_type_is_transposed() {
    let (rows, n) = (2 * ROWS + 5, 40);
    let values: Vec<f32> = (0..rows * n).map(|i| (i * 7 % 11) as f32).collect();
    let bytes: Vec<u8> =
        values.iter().flat_map(|&x| crate::float::f32_to_f16(x).to_le_bytes()).collect();
    let matrix = Matrix::new(Source::new(TensorType::F16, &bytes, n).unwrap());
    let gradient: Vec<f32> = (0..2 * rows).map(|i| (i % 3) as f32).collect();
    let got = multiply_transposed(Isa::active().unwrap(), &matrix, &gradient).unwrap();
    for (t, i) in [(0, 0), (1, 7), (1, n - 1)] {
        let product = |o: usize| gradient[t * rows + o] * values[o * n + i];
        assert_eq!(got[t * n + i], (0..rows).map(product).sum::<f32>());
    }
}
