//! Matrices for the dot products' benches: rows of a format, and what they stand for.

use super::support::{ROW, ROWS, weights};
use q4hifi::block::{QK_K, TensorType};
use q4hifi::dispatch::{self, dot_rows};
use q4hifi::dot::{Activations, Rows};
use q4hifi::isa::Isa;
use q4hifi::rows::{
    Encoding, Outliers, OutliersMut, Source, dequantize, dequantize_hifi, quantize, quantize_hifi,
};

/// Widths of a 1.5 B model: of a layer, and of its feed-forward part.
pub const LENGTHS: [usize; 2] = [ROW, 8960];

/// What rows are stored as.
#[derive(Clone, Copy)]
pub enum Format {
    Plain(TensorType),
    /// Q4_HIFI with so many outliers a block.
    Hifi(usize),
}

impl Format {
    pub fn name(self) -> String {
        match self {
            Self::Plain(kind) => kind.name().to_owned(),
            Self::Hifi(outliers) => format!("Q4_HIFI-{outliers}"),
        }
    }

    /// The type of the rows' blocks.
    pub fn kind(self) -> TensorType {
        match self {
            Self::Plain(kind) => kind,
            Self::Hifi(_) => TensorType::Q4K,
        }
    }

    /// Outliers a block.
    fn outliers(self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Hifi(outliers) => outliers,
        }
    }

    pub fn activations(self, isa: Isa, x: &[f32]) -> Activations {
        match self {
            Self::Plain(kind) => dispatch::activations(isa, kind, x),
            Self::Hifi(outliers) => dispatch::hifi_activations(isa, x, outliers),
        }
        .expect("whole blocks, few outliers")
    }
}

/// [`ROWS`] rows of `n` weights.
pub struct Matrix {
    pub format: Format,
    pub n: usize,
    /// Blocks.
    pub data: Vec<u8>,
    index: Vec<u8>,
    residual: Vec<u8>,
    decoded: Vec<f32>,
}

impl Matrix {
    pub fn new(format: Format, n: usize) -> Self {
        let w = weights(n * ROWS);
        let source = Source::from_f32(&w, n).expect("whole rows");
        let (kind, outliers) = (format.kind(), format.outliers());
        let count = w.len() / QK_K * outliers;
        let mut data = vec![0u8; ROWS * kind.row_bytes(n).expect("whole blocks")];
        let (mut index, mut residual) = (vec![0u8; count], vec![0u8; 2 * count]);
        let mut decoded = vec![0f32; w.len()];
        if outliers == 0 {
            quantize(source, kind, None, Encoding::Ggml, &mut data).expect("finite");
            dequantize(Source::new(kind, &data, n).expect("rows"), &mut decoded).expect("rows");
        } else {
            let (index, residual) = (&mut index, &mut residual);
            let parts = OutliersMut { outliers, index, residual };
            quantize_hifi(source, None, Encoding::Ggml, &mut data, parts).expect("finite");
            let parts = Outliers { outliers, index, residual };
            let base = Source::new(kind, &data, n).expect("rows");
            dequantize_hifi(base, parts, &mut decoded).expect("rows");
        }
        Self { format, n, data, index, residual, decoded }
    }

    pub fn rows(&self) -> Rows<'_> {
        match self.format {
            Format::Plain(kind) => Rows::Plain(kind, &self.data),
            Format::Hifi(_) => {
                Rows::Hifi { base: &self.data, index: &self.index, residual: &self.residual }
            }
        }
    }

    pub fn dot(&self, isa: Isa, activations: &Activations, out: &mut [f32]) {
        dot_rows(isa, self.rows(), activations, out);
    }

    /// The exact products, each with the sum of its terms' magnitudes.
    pub fn exact(&self, activations: &Activations) -> Vec<(f64, f64)> {
        let x = activations.values();
        let rows = self.decoded.chunks_exact(self.n).map(|row| {
            let terms = || row.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            (terms().sum(), terms().map(f64::abs).sum())
        });
        rows.collect()
    }
}

/// Panics where a product is not near the exact one. The f16 sums of Q8_1 are the coarsest part.
pub fn assert_near(got: &[f32], exact: &[(f64, f64)], what: &str) {
    for (&got, &(expected, magnitude)) in got.iter().zip(exact) {
        let error = (f64::from(got) - expected).abs();
        assert!(error < 1e-4 * magnitude, "{what}: {got} for {expected}, magnitude {magnitude}");
    }
}
