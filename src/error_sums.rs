//! Squared errors of decoded weights. They are added up in eight interleaved sums, which vectors can hold, so that the
//! result is the same on every instruction set.

const SUMS: usize = 8;

/// Squared errors of decoded rows.
///
/// Both sums are over all weights. If importance is given, each term is multiplied by the importance w of its column. A
/// scale that is too large for f16 makes `error` infinite or NaN.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ErrorSums {
    /// `Σ w (decoded - x)²`
    pub error: f64,
    /// `Σ w x²`
    pub reference: f64,
}

impl ErrorSums {
    /// `error / reference`; 0 if `error` is 0.
    pub fn relative(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.reference }
    }
}

impl std::iter::Sum for ErrorSums {
    fn sum<I: Iterator<Item = Self>>(rows: I) -> Self {
        rows.fold(Self::default(), |a, b| Self {
            error: a.error + b.error,
            reference: a.reference + b.reference,
        })
    }
}

/// Adds up the error of `decoded` weights against `x`, in a fixed order.
#[inline(always)]
pub fn error_sums(x: &[f32], importance: Option<&[f32]>, decoded: &[f32]) -> ErrorSums {
    let (x, x_rest) = x.as_chunks::<SUMS>();
    let (y, y_rest) = decoded.as_chunks::<SUMS>();
    let mut sums = Partial { error: [0.0; SUMS], reference: [0.0; SUMS] };
    match importance.map(<[f32]>::as_chunks::<SUMS>) {
        None => {
            for (x, y) in x.iter().zip(y) {
                sums.add(x, y, &[1.0; SUMS]);
            }
            sums.add(&padded(x_rest), &padded(y_rest), &[1.0; SUMS]);
        }
        Some((w, w_rest)) => {
            for ((x, y), w) in x.iter().zip(y).zip(w) {
                sums.add(x, y, w);
            }
            sums.add(&padded(x_rest), &padded(y_rest), &padded(w_rest));
        }
    }
    ErrorSums { error: sums.error.iter().sum(), reference: sums.reference.iter().sum() }
}

struct Partial {
    error: [f64; SUMS],
    reference: [f64; SUMS],
}

impl Partial {
    #[inline(always)]
    fn add(&mut self, x: &[f32; SUMS], y: &[f32; SUMS], w: &[f32; SUMS]) {
        for lane in 0..SUMS {
            let (x, w) = (f64::from(x[lane]), f64::from(w[lane]));
            let difference = f64::from(y[lane]) - x;
            self.error[lane] += w * (difference * difference);
            self.reference[lane] += w * (x * x);
        }
    }
}

/// The rest of a row, padded with zeros, which add nothing.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; SUMS] {
    let mut whole = [0.0; SUMS];
    whole[..rest.len()].copy_from_slice(rest);
    whole
}
