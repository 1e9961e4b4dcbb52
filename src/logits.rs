//! Rows of logits: the probabilities of the tokens that follow, and the differences between two models.
//!
//! A row has `n_vocab` logits. The probability of a token is `exp(logit - log Σ exp(logits))`. Exponentials are
//! computed in f32 and added in f64, as in llama-perplexity, so that results agree with its printed digits.
//!
//! The log-probability files of llama-perplexity have rows of `u16`: two f32 (step and smallest value), then one code
//! per token, `log_prob = step · code + least`, and one unused code if the size of the vocabulary is odd.

use crate::error::QuantError;
use crate::float::{exp, nearest_int};
use rayon::prelude::*;

/// Codes distinguish logits down to this far below the largest logit of a row.
const CODED_RANGE: f32 = 16.0;

/// The `u16`s at the beginning of a row of log-probabilities: two f32.
const CODES_OF_HEAD: usize = 4;

/// Logits of a model, one row per token.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    data: &'a [f32],
    n_vocab: usize,
}

/// The differences between a model and a base model at one token. Logarithms are natural.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// -log of the model's probability of the token that follows.
    pub nll: f64,
    /// The same for the base model.
    pub nll_base: f64,
    /// Kullback-Leibler divergence of the model's distribution from the base model's.
    pub kld: f64,
    /// The model's probability of the token that follows, minus the base model's.
    pub delta_p: f32,
    /// Whether the same token is the most probable one for both.
    pub same_top: bool,
}

impl<'a> Logits<'a> {
    /// Rows of `n_vocab` logits; `data` holds whole rows.
    pub fn new(data: &'a [f32], n_vocab: usize) -> Result<Self, QuantError> {
        let expected = data.len().next_multiple_of(n_vocab.max(1));
        expect_length("logits", data.len(), if n_vocab == 0 { 0 } else { expected })?;
        Ok(Self { data, n_vocab })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.n_vocab).unwrap_or(0)
    }

    /// Fails unless there is one token per row, and all are in the vocabulary.
    fn expect_tokens(&self, tokens: &[u32]) -> Result<(), QuantError> {
        expect_length("tokens", tokens.len(), self.rows())?;
        match tokens.iter().position(|&token| token as usize >= self.n_vocab) {
            None => Ok(()),
            Some(position) => Err(QuantError::UnknownToken { position, n_vocab: self.n_vocab }),
        }
    }

    fn par_rows(&self) -> rayon::slice::ChunksExact<'a, f32> {
        self.data.par_chunks_exact(self.n_vocab.max(1))
    }
}

/// Codes of a row of log-probabilities of `n_vocab` tokens.
pub fn log_prob_codes(n_vocab: usize) -> usize {
    n_vocab.next_multiple_of(2) + CODES_OF_HEAD
}

/// -log of the probability of each row's token.
pub fn token_nll(logits: Logits<'_>, tokens: &[u32]) -> Result<Vec<f64>, QuantError> {
    logits.expect_tokens(tokens)?;
    let rows = logits.par_rows().zip(tokens);
    Ok(rows.map(|(row, &token)| -Softmax::of(row).log_prob(row[token as usize])).collect())
}

/// The same, and every row's log-probabilities as codes, into `out`.
pub fn encode_log_probs(
    logits: Logits<'_>,
    tokens: &[u32],
    out: &mut [u16],
) -> Result<Vec<f64>, QuantError> {
    logits.expect_tokens(tokens)?;
    let codes = log_prob_codes(logits.n_vocab);
    expect_length("output", out.len(), logits.rows() * codes)?;
    let rows = logits.par_rows().zip(tokens).zip(out.par_chunks_exact_mut(codes));
    Ok(rows.map(|((row, &token), out)| encode_row(row, token as usize, out)).collect())
}

/// The differences between `logits` and a base model's log-probabilities, which [`encode_log_probs`] wrote.
///
/// As in llama-perplexity, the divergence leaves out the tokens whose base probability is below
/// exp(-16), which codes do not hold.
pub fn divergence_from_log_probs(
    logits: Logits<'_>,
    base: &[u16],
    tokens: &[u32],
) -> Result<Vec<Divergence>, QuantError> {
    logits.expect_tokens(tokens)?;
    let codes = log_prob_codes(logits.n_vocab);
    expect_length("base", base.len(), logits.rows() * codes)?;
    let rows = logits.par_rows().zip(base.par_chunks_exact(codes)).zip(tokens);
    Ok(rows.map(|((row, base), &token)| coded_divergence(row, base, token as usize)).collect())
}

/// The differences between `logits` and a base model's logits, over the whole vocabulary.
pub fn divergence(
    logits: Logits<'_>,
    base: Logits<'_>,
    tokens: &[u32],
) -> Result<Vec<Divergence>, QuantError> {
    logits.expect_tokens(tokens)?;
    expect_length("base", base.data.len(), logits.data.len())?;
    let rows = logits.par_rows().zip(base.data.par_chunks_exact(logits.n_vocab.max(1))).zip(tokens);
    Ok(rows.map(|((row, base), &token)| full_divergence(row, base, token as usize)).collect())
}

/// The two values that convert a row's logits to log-probabilities.
#[derive(Debug, Clone, Copy)]
struct Softmax {
    max: f32,
    /// log Σ exp(logit - max)
    log_sum: f64,
}

impl Softmax {
    fn of(row: &[f32]) -> Self {
        let max = row[top(row)];
        let mut sum = 0f64;
        for row in row.chunks(LANES) {
            sum += exps(row, max)[..row.len()].iter().map(|&term| f64::from(term)).sum::<f64>();
        }
        Self { max, log_sum: sum.ln() }
    }

    fn log_prob(&self, logit: f32) -> f64 {
        f64::from(logit - self.max) - self.log_sum
    }
}

/// Logits whose exponentials are taken together.
const LANES: usize = 16;

/// `exp(logit - max)` of at most [`LANES`] logits. It is a separate loop, so that the compiler vectorizes it.
#[inline(always)]
fn exps(row: &[f32], max: f32) -> [f32; LANES] {
    let mut terms = [0f32; LANES];
    for (term, logit) in terms.iter_mut().zip(row) {
        *term = exp(logit - max);
    }
    terms
}

/// Index of the largest logit; of several, the first.
fn top(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &logit) in row.iter().enumerate() {
        if logit > row[best] {
            best = i;
        }
    }
    best
}

fn encode_row(row: &[f32], token: usize, out: &mut [u16]) -> f64 {
    let softmax = Softmax::of(row);
    let (max, log_sum) = (softmax.max, softmax.log_sum as f32);
    let least = row.iter().fold(max, |least, &logit| least.min(logit)).max(max - CODED_RANGE);
    let step = (max - least) / 65535.0;
    let (head, codes) = out.split_at_mut(CODES_OF_HEAD);
    for (pair, value) in head.chunks_exact_mut(2).zip([step, least - max - log_sum]) {
        let bits = value.to_bits();
        pair.copy_from_slice(&[bits as u16, (bits >> 16) as u16]);
    }
    codes.fill(0);
    if step != 0.0 {
        let inverse = 1.0 / step;
        for (code, &logit) in codes.iter_mut().zip(row) {
            *code = if logit > least { nearest_int(inverse * (logit - least)) as u16 } else { 0 };
        }
    }
    f64::from(max + log_sum - row[token])
}

fn coded_divergence(row: &[f32], base: &[u16], token: usize) -> Divergence {
    let (head, codes) = base.split_at(CODES_OF_HEAD);
    let [step, least] =
        [0, 2].map(|i| f32::from_bits(u32::from(head[i]) | u32::from(head[i + 1]) << 16));
    let base_log_prob = |code: u16| step * f32::from(code) + least;
    let softmax = Softmax::of(row);
    let log_sum_exp = softmax.max + softmax.log_sum as f32;

    let (mut kld, mut top_base, mut most) = (0f64, 0, f32::NEG_INFINITY);
    for (i, (&logit, &code)) in row.iter().zip(codes).enumerate() {
        let log_prob = base_log_prob(code);
        if log_prob > most {
            (top_base, most) = (i, log_prob);
        }
        if log_prob > -CODED_RANGE {
            kld += f64::from(exp(log_prob) * (log_prob - logit + log_sum_exp));
        }
    }
    let nll = log_sum_exp - row[token];
    let nll_base = -base_log_prob(codes[token]);
    Divergence {
        nll: f64::from(nll),
        nll_base: f64::from(nll_base),
        kld,
        delta_p: exp(-nll) - exp(-nll_base),
        same_top: top(row) == top_base,
    }
}

/// With p = e/s and q = f/t, where e and f are exponentials and s and t their sums:
/// Σ p·log(p/q) = Σ e·(log e - log f)/s - log s + log t, which takes one pass.
fn full_divergence(row: &[f32], base: &[f32], token: usize) -> Divergence {
    let (top_row, top_base) = (top(row), top(base));
    let (max, max_base) = (row[top_row], base[top_base]);
    let (mut sum, mut sum_base, mut difference) = (0f64, 0f64, 0f64);
    for (row, base) in row.chunks(LANES).zip(base.chunks(LANES)) {
        let pairs = exps(row, max).into_iter().zip(exps(base, max_base)).zip(row.iter().zip(base));
        for ((term, term_base), (logit, logit_base)) in pairs {
            sum += f64::from(term);
            sum_base += f64::from(term_base);
            let log_ratio = (logit_base - max_base) - (logit - max);
            difference += f64::from(term_base) * f64::from(log_ratio);
        }
    }
    let softmax = Softmax { max, log_sum: sum.ln() };
    let softmax_base = Softmax { max: max_base, log_sum: sum_base.ln() };
    let [nll, nll_base] = [-softmax.log_prob(row[token]), -softmax_base.log_prob(base[token])];
    Divergence {
        nll,
        nll_base,
        // the difference of rounded sums may fall below zero
        kld: (difference / sum_base - softmax_base.log_sum + softmax.log_sum).max(0.0),
        delta_p: ((-nll).exp() - (-nll_base).exp()) as f32,
        same_top: top_row == top_base,
    }
}

fn expect_length(what: &'static str, got: usize, expected: usize) -> Result<(), QuantError> {
    if got == expected { Ok(()) } else { Err(QuantError::BufferLength { what, got, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::weights;

    const N: usize = 1001;
    const TOKENS: [u32; 3] = [0, 500, 1000];

    /// Three rows of logits that span some 20.
    fn rows(seed: u64) -> Vec<f32> {
        weights(3 * N, seed).iter().map(|x| x * 80.0).collect()
    }

    /// f64 throughout, by the definition.
    fn log_probs(row: &[f32]) -> Vec<f64> {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x) - sum.ln()).collect()
    }

    fn kld(row: &[f32], base: &[f32]) -> f64 {
        let pairs = log_probs(row).into_iter().zip(log_probs(base));
        pairs.map(|(q, p)| p.exp() * (p - q)).sum()
    }

    #[test]
    fn nll_is_that_of_the_definition() {
        let x = rows(1);
        let nll = token_nll(Logits::new(&x, N).unwrap(), &TOKENS).unwrap();
        for ((row, token), nll) in x.chunks(N).zip(TOKENS).zip(nll) {
            assert!((nll + log_probs(row)[token as usize]).abs() < 1e-5, "{nll}");
        }
    }

    #[test]
    fn equal_logits_do_not_diverge_and_uniform_ones_have_the_vocabulary_as_perplexity() {
        let x = rows(2);
        let logits = Logits::new(&x, N).unwrap();
        for d in divergence(logits, logits, &TOKENS).unwrap() {
            assert_eq!((d.kld, d.delta_p, d.same_top), (0.0, 0.0, true));
            assert_eq!(d.nll, d.nll_base);
        }
        let uniform = vec![-3.5; 3 * N];
        for nll in token_nll(Logits::new(&uniform, N).unwrap(), &TOKENS).unwrap() {
            assert!((nll - (N as f64).ln()).abs() < 1e-12, "{nll}");
        }
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        let (x, base) = (rows(3), rows(4));
        let found =
            divergence(Logits::new(&x, N).unwrap(), Logits::new(&base, N).unwrap(), &TOKENS);
        for (i, d) in found.unwrap().into_iter().enumerate() {
            let (row, base) = (&x[i * N..][..N], &base[i * N..][..N]);
            let expected = kld(row, base);
            assert!((d.kld - expected).abs() < 1e-5 * expected, "{} {expected}", d.kld);
            let [p, p_base] = [row, base].map(|r| log_probs(r)[TOKENS[i] as usize].exp());
            assert!((f64::from(d.delta_p) - (p - p_base)).abs() < 1e-6);
            assert_eq!(d.same_top, top(row) == top(base));
        }
    }

    #[test]
    fn codes_hold_log_probs_to_half_a_step() {
        let x = rows(5);
        let codes = log_prob_codes(N);
        assert_eq!(codes, N + 1 + 4);
        let mut out = vec![0xffff; 3 * codes];
        let nll = encode_log_probs(Logits::new(&x, N).unwrap(), &TOKENS, &mut out).unwrap();
        let direct = token_nll(Logits::new(&x, N).unwrap(), &TOKENS).unwrap();
        for (i, (coded, direct)) in nll.iter().zip(direct).enumerate() {
            assert!((coded - direct).abs() < 1e-5);
            let row = &out[i * codes..][..codes];
            let float = |i: usize| f32::from_bits(u32::from(row[i]) | u32::from(row[i + 1]) << 16);
            let (step, least) = (f64::from(float(0)), f64::from(float(2)));
            for (code, log_prob) in row[4..].iter().zip(log_probs(&x[i * N..][..N])) {
                let held = step * f64::from(*code) + least;
                assert!((held - log_prob.max(least)).abs() < 0.51 * step + 1e-5, "{held}");
            }
            assert_eq!(row[codes - 1], 0, "the unused code");
        }
    }

    #[test]
    fn codes_diverge_as_the_logits_do_but_for_their_step_and_tail() {
        let (x, base) = (rows(6), rows(7));
        let (x, base) = (Logits::new(&x, N).unwrap(), Logits::new(&base, N).unwrap());
        let mut out = vec![0; 3 * log_prob_codes(N)];
        encode_log_probs(base, &TOKENS, &mut out).unwrap();
        let coded = divergence_from_log_probs(x, &out, &TOKENS).unwrap();
        for (coded, exact) in coded.into_iter().zip(divergence(x, base, &TOKENS).unwrap()) {
            assert!((coded.kld - exact.kld).abs() < 2e-3, "{coded:?} {exact:?}");
            assert!((coded.nll - exact.nll).abs() < 1e-5);
            assert!((coded.delta_p - exact.delta_p).abs() < 1e-3);
            assert_eq!(coded.same_top, exact.same_top);
        }
    }

    #[test]
    fn constant_rows_and_no_rows_are_legal() {
        let x = vec![2.0; N];
        let logits = Logits::new(&x, N).unwrap();
        let mut out = vec![7; log_prob_codes(N)];
        encode_log_probs(logits, &[3], &mut out).unwrap();
        assert!(out[4..].iter().all(|&code| code == 0));
        let found = divergence_from_log_probs(logits, &out, &[3]).unwrap()[0];
        assert!(found.kld.abs() < 1e-6 && found.same_top);
        let none = Logits::new(&[], N).unwrap();
        assert!(token_nll(none, &[]).unwrap().is_empty());
        assert!(divergence(none, none, &[]).unwrap().is_empty());
        assert_eq!(Logits::new(&[], 0).unwrap().rows(), 0);
    }

    #[test]
    fn lengths_and_tokens_are_checked() {
        let x = rows(8);
        assert!(Logits::new(&x[1..], N).is_err());
        assert!(Logits::new(&x, 0).is_err());
        let logits = Logits::new(&x, N).unwrap();
        let error = QuantError::UnknownToken { position: 1, n_vocab: N };
        assert_eq!(token_nll(logits, &[0, N as u32, 0]), Err(error));
        for (what, result) in [
            ("tokens", token_nll(logits, &[0]).map(|_| ())),
            ("output", encode_log_probs(logits, &TOKENS, &mut [0; 9]).map(|_| ())),
            ("base", divergence_from_log_probs(logits, &[0; 9], &TOKENS).map(|_| ())),
            ("base", divergence(logits, Logits::new(&x[N..], N).unwrap(), &TOKENS).map(|_| ())),
        ] {
            assert!(
                matches!(result, Err(QuantError::BufferLength { what: w, .. }) if w == what),
                "{result:?}"
            );
        }
    }
}
