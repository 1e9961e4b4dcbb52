//! Rotary position embeddings (RoPE): pair i of a head is rotated by `position · frequency[i]`.
//!
//! Every method of context extension results in one frequency per pair and one common magnitude. Linear scaling divides
//! all frequencies by one factor. Llama 3 divides each frequency by its own factor. YaRN divides only those frequencies
//! whose wave is longer than the training context, with a ramp in between.

/// How positions are encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Wave lengths go from 2π to 2π times this.
    pub base: f32,
    /// Dimensions of a head that are rotated; even.
    pub dimensions: usize,
    /// The factor by which the context is extended; 1 for no extension.
    pub stretch: f32,
    /// YaRN's ramp. Without it, the scaling is linear.
    pub yarn: Option<Yarn>,
    /// Cosines and sines are multiplied by this.
    pub magnitude: f32,
    /// Each frequency is divided by its factor; empty for factors of 1.
    pub factors: Vec<f32>,
}

/// The ramp of YaRN. Pairs that rotate more than `fast` times in `context` tokens keep their frequency. The frequency
/// of pairs that rotate less than `slow` times is divided by [`RopeConfig::stretch`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Context of the training, in tokens, before the extension.
    pub context: f32,
    /// Rotations.
    pub fast: f32,
    /// Rotations.
    pub slow: f32,
}

/// The frequencies of the pairs.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
    magnitude: f32,
}

impl Rope {
    pub fn new(config: &RopeConfig) -> Self {
        let dimensions = config.dimensions as f64;
        let base = f64::from(config.base);
        let stretched = 1.0 / f64::from(config.stretch);
        // the pair that makes `turns` full rotations over the context
        let pair = |turns: f32, context: f32| {
            let wave = f64::from(context) / (f64::from(turns) * std::f64::consts::TAU);
            dimensions * wave.ln() / (2.0 * base.ln())
        };
        let ramp = config.yarn.map(|yarn| {
            let low = pair(yarn.fast, yarn.context).floor().max(0.0);
            let high = pair(yarn.slow, yarn.context).ceil().min(dimensions - 1.0);
            (low, (high - low).max(0.001))
        });
        let frequency = |i: usize| {
            let kept =
                ramp.map_or(0.0, |(low, width)| 1.0 - ((i as f64 - low) / width).clamp(0.0, 1.0));
            let factor = config.factors.get(i).map_or(1.0, |&factor| f64::from(factor));
            base.powf(-2.0 * i as f64 / dimensions) / factor * (stretched * (1.0 - kept) + kept)
        };
        let frequencies = (0..config.dimensions / 2).map(frequency).collect();
        Self { frequencies, magnitude: config.magnitude }
    }

    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Cosines and sines for positions from `first` on, one row of pairs per position.
    pub fn angles(&self, first: usize, cos: &mut [f32], sin: &mut [f32]) {
        let rows = cos.chunks_exact_mut(self.pairs()).zip(sin.chunks_exact_mut(self.pairs()));
        for (i, (cos, sin)) in rows.enumerate() {
            let position = (first + i) as f64;
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
                // in f64, because the f32 functions of C libraries differ between CPUs
                let angle = (position * frequency) % std::f64::consts::TAU;
                *cos = angle.cos() as f32 * self.magnitude;
                *sin = angle.sin() as f32 * self.magnitude;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> RopeConfig {
        let (base, dimensions) = (10_000.0, 8);
        RopeConfig { base, dimensions, stretch: 1.0, yarn: None, magnitude: 1.0, factors: vec![] }
    }

    #[test]
    fn frequencies_fall_from_one() {
        let rope = Rope::new(&plain());
        for (got, expected) in rope.frequencies.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((got - expected).abs() < 1e-12);
        }
        let (mut cos, mut sin) = ([0.0; 8], [0.0; 8]);
        rope.angles(7, &mut cos, &mut sin);
        assert!((cos[0] - 7f32.cos()).abs() < 1e-7 && (sin[5] - 0.8f32.sin()).abs() < 1e-7);
    }

    #[test]
    fn factors_and_stretch_divide() {
        let factors = vec![1.0, 2.0, 4.0, 8.0];
        let rope = Rope::new(&RopeConfig { stretch: 2.0, factors, ..plain() });
        for (got, expected) in rope.frequencies.iter().zip([0.5, 0.025, 0.00125, 0.000_062_5]) {
            assert!((got - expected).abs() < 1e-12);
        }
    }

    /// 64 pairs, base 10000, 4096 tokens of context: the published ramp is from pair 20 to 46.
    #[test]
    fn yarn_keeps_short_waves_and_stretches_long_ones() {
        let yarn = Some(Yarn { context: 4096.0, fast: 32.0, slow: 1.0 });
        let config = RopeConfig { dimensions: 128, stretch: 4.0, yarn, ..plain() };
        let stretched = Rope::new(&config);
        let plain = Rope::new(&RopeConfig { dimensions: 128, ..plain() });
        let ratio = |i: usize| stretched.frequencies[i] / plain.frequencies[i];
        assert_eq!((ratio(0), ratio(20)), (1.0, 1.0));
        assert!((ratio(33) - (0.25 * 0.5 + 0.5)).abs() < 1e-9);
        assert!((ratio(46) - 0.25).abs() < 1e-12 && (ratio(63) - 0.25).abs() < 1e-12);
    }
}
