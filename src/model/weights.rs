//! The tensors of a model by their roles. Their shapes are checked.

use super::config::{Config, Experts};
use super::error::ModelError;
use super::role::Role;
use crate::isa::Isa;
use crate::matmul::Matrix;
use std::collections::HashMap;

/// Whether a model has a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Required,
    Optional,
    Unused,
}

impl Role {
    /// Rows and row length; a vector is one row.
    pub(super) fn shape(self, c: &Config) -> [usize; 2] {
        let (query, key) = (c.n_query(), c.n_key());
        let experts = c.experts.map_or(0, |experts| experts.count);
        match self {
            Self::TokenEmbd | Self::Output => [c.n_vocab, c.n_embd],
            Self::OutputBias => [1, c.n_vocab],
            Self::AttnQ => [query, c.n_embd],
            Self::AttnK | Self::AttnV => [key, c.n_embd],
            Self::AttnQBias => [1, query],
            Self::AttnKBias | Self::AttnVBias => [1, key],
            Self::AttnQNorm | Self::AttnKNorm => [1, c.head_size],
            Self::AttnOutput => [c.n_embd, query],
            Self::FfnGate | Self::FfnUp => [c.n_ff, c.n_embd],
            Self::FfnGateBias | Self::FfnUpBias => [1, c.n_ff],
            Self::FfnDown => [c.n_embd, c.n_ff],
            Self::FfnGateInp => [experts, c.n_embd],
            // a stack: the rows of the first expert, then those of the second, and so on
            Self::FfnGateExps | Self::FfnUpExps => [experts * c.n_ff, c.n_embd],
            Self::FfnDownExps => [experts * c.n_embd, c.n_ff],
            Self::AttnOutputBias | Self::FfnDownBias => [1, c.n_embd],
            Self::OutputNorm | Self::AttnNorm | Self::AttnPostNorm => [1, c.n_embd],
            Self::FfnNorm | Self::FfnPostNorm => [1, c.n_embd],
        }
    }

    pub(super) fn need(self, c: &Config) -> Need {
        let when = |wanted| if wanted { Need::Required } else { Need::Unused };
        let is_mixture = c.experts.is_some();
        match self {
            Self::AttnQNorm | Self::AttnKNorm => when(c.norm_heads),
            Self::AttnPostNorm | Self::FfnPostNorm => when(c.post_norms),
            Self::FfnGateInp | Self::FfnGateExps | Self::FfnUpExps | Self::FfnDownExps => {
                when(is_mixture)
            }
            Self::FfnGate | Self::FfnUp | Self::FfnDown => when(!is_mixture),
            Self::FfnGateBias | Self::FfnUpBias | Self::FfnDownBias if is_mixture => Need::Unused,
            // without an output matrix, the token embeddings are used (tied)
            Self::Output => Need::Optional,
            Self::OutputBias => Need::Optional,
            Self::AttnQBias | Self::AttnKBias | Self::AttnVBias => Need::Optional,
            Self::AttnOutputBias | Self::FfnGateBias | Self::FfnUpBias => Need::Optional,
            Self::FfnDownBias => Need::Optional,
            _ => Need::Required,
        }
    }
}

/// A matrix, and the bias that is added to its products.
#[derive(Debug, Clone)]
pub(super) struct Linear<'a> {
    pub matrix: Matrix<'a>,
    pub bias: Option<Vec<f32>>,
}

/// A feed-forward network: `down · (activation(gate · x) * (up · x))`.
#[derive(Debug, Clone)]
pub(super) struct Network<'a> {
    pub gate: Linear<'a>,
    pub up: Linear<'a>,
    pub down: Linear<'a>,
}

/// Experts, stacked: a matrix has the rows of all experts.
#[derive(Debug, Clone)]
pub(super) struct Mixture<'a> {
    /// Experts that each token uses.
    pub used: usize,
    /// One row for each expert.
    pub router: Matrix<'a>,
    pub gate: Matrix<'a>,
    pub up: Matrix<'a>,
    pub down: Matrix<'a>,
}

impl<'a> Mixture<'a> {
    /// The network of one expert.
    pub fn expert(&self, expert: usize) -> Network<'a> {
        let of_stack = |stack: &Matrix<'a>| {
            let rows = stack.rows() / self.router.rows();
            Linear { matrix: stack.of_rows(expert * rows..(expert + 1) * rows), bias: None }
        };
        Network { gate: of_stack(&self.gate), up: of_stack(&self.up), down: of_stack(&self.down) }
    }
}

/// What follows the attention of a layer.
#[derive(Debug, Clone)]
pub(super) enum FeedForward<'a> {
    Dense(Network<'a>),
    Mixture(Mixture<'a>),
}

/// The tensors of one layer.
#[derive(Debug, Clone)]
pub(super) struct Layer<'a> {
    pub attn_norm: Vec<f32>,
    pub query: Linear<'a>,
    pub key: Linear<'a>,
    pub value: Linear<'a>,
    pub query_norm: Option<Vec<f32>>,
    pub key_norm: Option<Vec<f32>>,
    pub attn_output: Linear<'a>,
    pub attn_post_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub feed_forward: FeedForward<'a>,
    pub ffn_post_norm: Option<Vec<f32>>,
}

/// All tensors of a model. A clone shares the memory of the matrices.
#[derive(Debug, Clone)]
pub(super) struct Tensors<'a> {
    pub token_embd: Matrix<'a>,
    pub layers: Vec<Layer<'a>>,
    pub output_norm: Vec<f32>,
    pub output: Linear<'a>,
}

impl<'a> Tensors<'a> {
    /// Replaces a matrix.
    pub fn replace(
        &mut self,
        config: &Config,
        role: &str,
        layer: Option<usize>,
        matrix: Matrix<'a>,
    ) -> Result<(), ModelError> {
        let checked = role_of(config, role, layer, &matrix)?;
        if checked == Role::TokenEmbd {
            self.token_embd = matrix;
            return Ok(());
        }
        let unknown = || ModelError::Unknown { role: role.to_owned(), layer };
        *self.matrix(checked, layer).ok_or_else(unknown)? = matrix;
        Ok(())
    }

    fn matrix(&mut self, role: Role, layer: Option<usize>) -> Option<&mut Matrix<'a>> {
        let Some(layer) = layer else {
            return (role == Role::Output).then_some(&mut self.output.matrix);
        };
        let layer = &mut self.layers[layer];
        match (role, &mut layer.feed_forward) {
            (Role::AttnQ, _) => Some(&mut layer.query.matrix),
            (Role::AttnK, _) => Some(&mut layer.key.matrix),
            (Role::AttnV, _) => Some(&mut layer.value.matrix),
            (Role::AttnOutput, _) => Some(&mut layer.attn_output.matrix),
            (Role::FfnGate, FeedForward::Dense(network)) => Some(&mut network.gate.matrix),
            (Role::FfnUp, FeedForward::Dense(network)) => Some(&mut network.up.matrix),
            (Role::FfnDown, FeedForward::Dense(network)) => Some(&mut network.down.matrix),
            (Role::FfnGateInp, FeedForward::Mixture(mixture)) => Some(&mut mixture.router),
            (Role::FfnGateExps, FeedForward::Mixture(mixture)) => Some(&mut mixture.gate),
            (Role::FfnUpExps, FeedForward::Mixture(mixture)) => Some(&mut mixture.up),
            (Role::FfnDownExps, FeedForward::Mixture(mixture)) => Some(&mut mixture.down),
            _ => None,
        }
    }
}

/// The role with that name. Fails if a model with this configuration has no such tensor, or if the shape is wrong.
fn role_of(
    config: &Config,
    role: &str,
    layer: Option<usize>,
    matrix: &Matrix<'_>,
) -> Result<Role, ModelError> {
    let unknown = || ModelError::Unknown { role: role.to_owned(), layer };
    let role = Role::from_name(role).ok_or_else(unknown)?;
    let placed = match layer {
        Some(layer) => role.in_layers() && layer < config.n_layer,
        None => !role.in_layers(),
    };
    if !placed || role.need(config) == Need::Unused {
        return Err(unknown());
    }
    let got = [matrix.rows(), matrix.row_length()];
    let expected = role.shape(config);
    if got == expected { Ok(role) } else { Err(ModelError::Shape { got, expected }) }
}

#[derive(Debug)]
enum Stored<'a> {
    Matrix(Matrix<'a>),
    Vector(Vec<f32>),
}

/// Takes the tensors of a model in any order.
#[derive(Debug)]
pub struct Builder<'a> {
    config: Config,
    stored: HashMap<(Role, Option<usize>), Stored<'a>>,
}

impl<'a> Builder<'a> {
    /// A builder of a model with this configuration.
    pub fn new(config: Config) -> Result<Self, ModelError> {
        config.check()?;
        Ok(Self { config, stored: HashMap::new() })
    }

    /// Adds a tensor. `layer` is its layer, if the role exists in every layer.
    pub fn add(
        &mut self,
        role: &str,
        layer: Option<usize>,
        matrix: Matrix<'a>,
    ) -> Result<(), ModelError> {
        let role = role_of(&self.config, role, layer, &matrix)?;
        let is_matrix = matches!(role, Role::TokenEmbd | Role::FfnGateInp); // with one row, too
        let stored = if matrix.rows() == 1 && !is_matrix {
            let mut vector = vec![0f32; matrix.row_length()];
            matrix.row(Isa::active()?, 0, &mut vector);
            Stored::Vector(vector)
        } else {
            Stored::Matrix(matrix)
        };
        self.stored.insert((role, layer), stored);
        Ok(())
    }

    /// Returns the configuration and the tensors. Fails if a tensor is missing.
    pub(super) fn finish(mut self) -> Result<(Config, Tensors<'a>), ModelError> {
        let token_embd = self.take_matrix(Role::TokenEmbd, None)?;
        let output = self.take_matrix(Role::Output, None).unwrap_or(token_embd);
        let output = Linear { matrix: output, bias: self.take_vector(Role::OutputBias, None)? };
        let output_norm = self.vector(Role::OutputNorm, None)?;
        let layers = (0..self.config.n_layer).map(|i| self.layer(i)).collect::<Result<_, _>>()?;
        Ok((self.config, Tensors { token_embd, layers, output_norm, output }))
    }

    fn layer(&mut self, layer: usize) -> Result<Layer<'a>, ModelError> {
        let at = Some(layer);
        Ok(Layer {
            attn_norm: self.vector(Role::AttnNorm, at)?,
            query: self.linear(Role::AttnQ, Role::AttnQBias, at)?,
            key: self.linear(Role::AttnK, Role::AttnKBias, at)?,
            value: self.linear(Role::AttnV, Role::AttnVBias, at)?,
            query_norm: self.take_vector(Role::AttnQNorm, at)?,
            key_norm: self.take_vector(Role::AttnKNorm, at)?,
            attn_output: self.linear(Role::AttnOutput, Role::AttnOutputBias, at)?,
            attn_post_norm: self.take_vector(Role::AttnPostNorm, at)?,
            ffn_norm: self.vector(Role::FfnNorm, at)?,
            feed_forward: self.feed_forward(at)?,
            ffn_post_norm: self.take_vector(Role::FfnPostNorm, at)?,
        })
    }

    fn feed_forward(&mut self, at: Option<usize>) -> Result<FeedForward<'a>, ModelError> {
        Ok(match self.config.experts {
            None => FeedForward::Dense(Network {
                gate: self.linear(Role::FfnGate, Role::FfnGateBias, at)?,
                up: self.linear(Role::FfnUp, Role::FfnUpBias, at)?,
                down: self.linear(Role::FfnDown, Role::FfnDownBias, at)?,
            }),
            Some(Experts { used, .. }) => FeedForward::Mixture(Mixture {
                used,
                router: self.take_matrix(Role::FfnGateInp, at)?,
                gate: self.take_matrix(Role::FfnGateExps, at)?,
                up: self.take_matrix(Role::FfnUpExps, at)?,
                down: self.take_matrix(Role::FfnDownExps, at)?,
            }),
        })
    }

    fn linear(
        &mut self,
        role: Role,
        bias: Role,
        layer: Option<usize>,
    ) -> Result<Linear<'a>, ModelError> {
        Ok(Linear { matrix: self.take_matrix(role, layer)?, bias: self.take_vector(bias, layer)? })
    }

    fn take_matrix(&mut self, role: Role, layer: Option<usize>) -> Result<Matrix<'a>, ModelError> {
        match self.stored.remove(&(role, layer)) {
            Some(Stored::Matrix(matrix)) => Ok(matrix),
            _ => Err(ModelError::Missing { role, layer }),
        }
    }

    fn vector(&mut self, role: Role, layer: Option<usize>) -> Result<Vec<f32>, ModelError> {
        self.take_vector(role, layer)?.ok_or(ModelError::Missing { role, layer })
    }

    /// The vector, or None. Fails if it is missing and the model needs it.
    fn take_vector(
        &mut self,
        role: Role,
        layer: Option<usize>,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        match self.stored.remove(&(role, layer)) {
            Some(Stored::Vector(vector)) => Ok(Some(vector)),
            _ if role.need(&self.config) == Need::Required => {
                Err(ModelError::Missing { role, layer })
            }
            _ => Ok(None),
        }
    }
}
