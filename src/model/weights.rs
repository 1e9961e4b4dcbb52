//! The tensors of a model by their roles, each checked to have the shape that its role asks for.

use super::config::Config;
use super::error::ModelError;
use crate::block::QK_K;
use crate::error::QuantError;
use crate::float::f16_to_f32;
use crate::hifi::rows::{Outliers, check_parts};
use crate::kernel::{self, Isa};
use crate::matmul::Matrix;
use crate::rows::Source;
use std::collections::HashMap;

macro_rules! roles {
    ($($role:ident $name:literal),* $(,)?) => {
        /// What a tensor is for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Role { $($role),* }

        impl Role {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$role),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$role => $name),* }
            }
        }
    };
}

roles! {
    TokenEmbd "token_embd",
    OutputNorm "output_norm",
    Output "output",
    OutputBias "output_bias",
    AttnNorm "attn_norm",
    AttnQ "attn_q",
    AttnQBias "attn_q_bias",
    AttnK "attn_k",
    AttnKBias "attn_k_bias",
    AttnV "attn_v",
    AttnVBias "attn_v_bias",
    AttnQNorm "attn_q_norm",
    AttnKNorm "attn_k_norm",
    AttnOutput "attn_output",
    AttnOutputBias "attn_output_bias",
    AttnPostNorm "attn_post_norm",
    FfnNorm "ffn_norm",
    FfnGate "ffn_gate",
    FfnGateBias "ffn_gate_bias",
    FfnUp "ffn_up",
    FfnUpBias "ffn_up_bias",
    FfnDown "ffn_down",
    FfnDownBias "ffn_down_bias",
    FfnPostNorm "ffn_post_norm",
}

/// Whether a model has a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
    Unused,
}

impl Role {
    /// The role of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.name() == name)
    }

    /// Whether every layer has one.
    pub fn in_layers(self) -> bool {
        !matches!(self, Self::TokenEmbd | Self::OutputNorm | Self::Output | Self::OutputBias)
    }

    /// Rows and row length; a vector is one row.
    fn shape(self, c: &Config) -> [usize; 2] {
        let (query, key) = (c.n_query(), c.n_key());
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
            Self::AttnOutputBias | Self::FfnDownBias => [1, c.n_embd],
            Self::OutputNorm | Self::AttnNorm | Self::AttnPostNorm => [1, c.n_embd],
            Self::FfnNorm | Self::FfnPostNorm => [1, c.n_embd],
        }
    }

    fn need(self, c: &Config) -> Need {
        let when = |wanted| if wanted { Need::Required } else { Need::Unused };
        match self {
            Self::AttnQNorm | Self::AttnKNorm => when(c.norm_heads),
            Self::AttnPostNorm | Self::FfnPostNorm => when(c.post_norms),
            // where it is not there, the embeddings serve
            Self::Output | Self::OutputBias => Need::Optional,
            Self::AttnQBias | Self::AttnKBias | Self::AttnVBias => Need::Optional,
            Self::AttnOutputBias | Self::FfnGateBias | Self::FfnUpBias => Need::Optional,
            Self::FfnDownBias => Need::Optional,
            _ => Need::Required,
        }
    }
}

/// A matrix and what is added to its product.
#[derive(Debug, Clone)]
pub(super) struct Linear<'a> {
    pub matrix: Matrix<'a>,
    pub bias: Option<Vec<f32>>,
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
    pub gate: Linear<'a>,
    pub up: Linear<'a>,
    pub down: Linear<'a>,
    pub ffn_post_norm: Option<Vec<f32>>,
}

/// Rows of weights as they lie in a file.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    rows: Source<'a>,
    outliers: Option<Outliers<'a>>,
}

impl<'a> Table<'a> {
    /// Rows of one type.
    pub fn new(rows: Source<'a>) -> Self {
        Self { rows, outliers: None }
    }

    /// Q4_K rows and their outliers.
    pub fn hifi(rows: Source<'a>, outliers: Outliers<'a>) -> Result<Self, QuantError> {
        check_parts(rows, outliers)?;
        Ok(Self { rows, outliers: Some(outliers).filter(|outliers| outliers.outliers > 0) })
    }

    fn matrix(&self) -> Result<Matrix<'a>, QuantError> {
        match self.outliers {
            None => Ok(Matrix::new(self.rows)),
            Some(outliers) => Matrix::hifi(self.rows.data(), self.rows.row_length(), outliers),
        }
    }

    fn vector(&self) -> Result<Vec<f32>, QuantError> {
        let mut out = vec![0f32; self.rows.row_length()];
        self.row(Isa::active()?, 0, &mut out);
        Ok(out)
    }

    /// Decodes row `row`, which there is, into `out`.
    pub(super) fn row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        let kind = self.rows.kind();
        let bytes = self.rows.row_bytes();
        kernel::dequantize_row(isa, kind, &self.rows.data()[row * bytes..][..bytes], out);
        let Some(Outliers { outliers: n, index, residual }) = self.outliers else { return };
        let per_row = self.rows.row_length() / QK_K * n;
        let index = index[row * per_row..][..per_row].chunks_exact(n);
        let residual = residual[row * per_row * 2..][..per_row * 2].chunks_exact(2 * n);
        for (block, (index, residual)) in out.chunks_exact_mut(QK_K).zip(index.zip(residual)) {
            for (&i, r) in index.iter().zip(residual.as_chunks().0) {
                block[usize::from(i)] += f16_to_f32(u16::from_le_bytes(*r));
            }
        }
    }
}

/// All tensors of a model; a copy shares the matrices.
#[derive(Debug, Clone)]
pub(super) struct Tensors<'a> {
    pub token_embd: Table<'a>,
    pub layers: Vec<Layer<'a>>,
    pub output_norm: Vec<f32>,
    pub output: Linear<'a>,
}

impl<'a> Tensors<'a> {
    /// Puts another matrix in the place of one.
    pub fn replace(
        &mut self,
        config: &Config,
        role: &str,
        layer: Option<usize>,
        table: Table<'a>,
    ) -> Result<(), ModelError> {
        let checked = place(config, role, layer, &table)?;
        if checked == Role::TokenEmbd {
            self.token_embd = table;
            return Ok(());
        }
        let unknown = || ModelError::Unknown { role: role.to_owned(), layer };
        self.linear(checked, layer).ok_or_else(unknown)?.matrix = table.matrix()?;
        Ok(())
    }

    fn linear(&mut self, role: Role, layer: Option<usize>) -> Option<&mut Linear<'a>> {
        let Some(layer) = layer else {
            return (role == Role::Output).then_some(&mut self.output);
        };
        let layer = &mut self.layers[layer];
        match role {
            Role::AttnQ => Some(&mut layer.query),
            Role::AttnK => Some(&mut layer.key),
            Role::AttnV => Some(&mut layer.value),
            Role::AttnOutput => Some(&mut layer.attn_output),
            Role::FfnGate => Some(&mut layer.gate),
            Role::FfnUp => Some(&mut layer.up),
            Role::FfnDown => Some(&mut layer.down),
            _ => None,
        }
    }
}

/// The role of that name; fails unless a model of that shape has a place for such a tensor.
fn place(
    config: &Config,
    role: &str,
    layer: Option<usize>,
    table: &Table<'_>,
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
    let got = [table.rows.rows(), table.rows.row_length()];
    let expected = role.shape(config);
    if got == expected { Ok(role) } else { Err(ModelError::Shape { got, expected }) }
}

#[derive(Debug)]
enum Stored<'a> {
    Table(Table<'a>),
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
    /// For a model of that shape.
    pub fn new(config: Config) -> Result<Self, ModelError> {
        config.check()?;
        Ok(Self { config, stored: HashMap::new() })
    }

    /// Takes the tensor of that role, and of that layer where there is one in each.
    pub fn add(
        &mut self,
        role: &str,
        layer: Option<usize>,
        table: Table<'a>,
    ) -> Result<(), ModelError> {
        let role = place(&self.config, role, layer, &table)?;
        let stored = match role {
            Role::TokenEmbd => Stored::Table(table),
            _ if table.rows.rows() == 1 => Stored::Vector(table.vector()?),
            _ => Stored::Matrix(table.matrix()?),
        };
        self.stored.insert((role, layer), stored);
        Ok(())
    }

    /// The model, if nothing is missing.
    pub(super) fn finish(mut self) -> Result<(Config, Tensors<'a>), ModelError> {
        let Some(Stored::Table(token_embd)) = self.stored.remove(&(Role::TokenEmbd, None)) else {
            return Err(ModelError::Missing { role: Role::TokenEmbd, layer: None });
        };
        let output = match self.take_matrix(Role::Output, None) {
            Ok(matrix) => matrix,
            Err(_) => token_embd.matrix()?,
        };
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
            gate: self.linear(Role::FfnGate, Role::FfnGateBias, at)?,
            up: self.linear(Role::FfnUp, Role::FfnUpBias, at)?,
            down: self.linear(Role::FfnDown, Role::FfnDownBias, at)?,
            ffn_post_norm: self.take_vector(Role::FfnPostNorm, at)?,
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

    /// The vector if it is there; an error if it is not, and must be.
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
