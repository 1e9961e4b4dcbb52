//! Choosing the next token. The order is llama.cpp's: top-k, top-p, min-p, temperature, draw. With the same seed, the
//! tokens are llama.cpp's, too.

use crate::float::exp;
use std::cmp::Ordering;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 always takes the best token.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens are kept; 0 keeps all.
    pub top_k: usize,
    /// Of these, the smallest number of tokens is kept whose probabilities sum to at least `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Of these, the tokens are kept whose probability is at least `min_p` times the largest; 0 keeps all.
    pub min_p: f32,
    /// The seed of the random numbers.
    pub seed: u32,
}

/// Chooses tokens, one after another.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: MersenneTwister,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
}

impl Sampler {
    /// A sampler whose random numbers begin with the seed.
    pub fn new(sampling: Sampling) -> Self {
        let random = MersenneTwister::new(sampling.seed);
        Self { sampling, random, candidates: Vec::new() }
    }

    /// The next token. If the best token is taken, ties go to the lower id. None if there are no logits, or one is NaN.
    pub fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        if logits.is_empty() || logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        if self.sampling.temperature <= 0.0 {
            let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
            return Some((1..logits.len()).fold(0, better) as u32);
        }
        self.candidates.clear();
        let candidate = |(token, &logit)| Candidate { token: token as u32, logit };
        self.candidates.extend(logits.iter().enumerate().map(candidate));
        let mut sorted = false;
        if self.sampling.top_k > 0 {
            keep_best(&mut self.candidates, self.sampling.top_k);
            sorted = true;
        }
        if self.sampling.top_p < 1.0 {
            keep_probable(&mut self.candidates, self.sampling.top_p, sorted);
        }
        if self.sampling.min_p > 0.0 {
            let least = greatest(&self.candidates) + f64::from(self.sampling.min_p).ln() as f32;
            self.candidates.retain(|c| c.logit >= least);
        }
        self.draw()
    }

    fn draw(&mut self) -> Option<u32> {
        let random = self.random.next_f64();
        let temperature = self.sampling.temperature;
        self.candidates.iter_mut().for_each(|c| c.logit /= temperature);
        let greatest = greatest(&self.candidates);
        let weight = |c: &Candidate| f64::from(exp(c.logit - greatest));
        let target = self.candidates.iter().map(weight).sum::<f64>() * random;
        let mut sum = 0.0;
        let found = self.candidates.iter().find(|c| {
            sum += weight(c);
            sum >= target
        });
        found.or(self.candidates.last()).map(|c| c.token)
    }
}

fn greatest(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max)
}

/// Orders the best token first; ties by the lower id.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The `n` best, in order.
fn keep_best(candidates: &mut Vec<Candidate>, n: usize) {
    if n < candidates.len() {
        candidates.select_nth_unstable_by(n, order);
        candidates.truncate(n);
    }
    candidates.sort_unstable_by(order);
}

/// The fewest best tokens whose probabilities sum to at least `p`, in order.
fn keep_probable(candidates: &mut Vec<Candidate>, p: f32, sorted: bool) {
    let greatest = greatest(candidates);
    let weight = |c: &Candidate| exp(c.logit - greatest);
    let all: f32 = candidates.iter().map(weight).sum();
    if !sorted {
        candidates.sort_unstable_by(order);
    }
    let mut sum = 0.0;
    let reached = candidates.iter().position(|c| {
        sum += weight(c) / all;
        sum >= p
    });
    candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
}

/// MT19937, the generator of C++'s standard library.
#[derive(Debug, Clone)]
struct MersenneTwister {
    state: [u32; Self::N],
    next: usize,
}

impl MersenneTwister {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: Self::N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == Self::N {
            for i in 0..Self::N {
                let low = self.state[(i + 1) % Self::N] & 0x7fff_ffff;
                let y = (self.state[i] & 0x8000_0000) | low;
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A random f64 in 0..1 from two 32-bit outputs, the low half first.
    fn next_f64(&mut self) -> f64 {
        let (low, high) = (f64::from(self.next_u32()), f64::from(self.next_u32()));
        let value = (low + high * 4_294_967_296.0) / 18_446_744_073_709_551_616.0;
        if value < 1.0 { value } else { 1.0f64.next_down() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling =
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 7 };

    fn counts(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    /// The generator's 10000th number is stated in the C++ standard.
    #[test]
    fn the_generator_is_the_standard_one() {
        let mut random = MersenneTwister::new(5489);
        let last = (0..10_000).map(|_| random.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn tokens_come_as_often_as_they_should() {
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        for (got, expected) in counts(PLAIN, &logits).iter().zip([2000, 1000, 500, 500]) {
            assert!(got.abs_diff(expected) < 120, "{got} {expected}");
        }
        let cold = counts(Sampling { temperature: 0.5, ..PLAIN }, &logits);
        assert!(cold[0].abs_diff(4000 * 16 / 22) < 120, "{cold:?}"); // squares: 16 of 16 + 4 + 1 + 1
    }

    #[test]
    fn what_is_cut_off_never_comes() {
        let logits = [1.0, 4.0, 3.0, 2.0];
        let seen = |sampling| counts(sampling, &logits).iter().map(|&n| n > 0).collect::<Vec<_>>();
        assert_eq!(seen(PLAIN), [true; 4]);
        assert_eq!(seen(Sampling { top_k: 2, ..PLAIN }), [false, true, true, false]);
        assert_eq!(seen(Sampling { top_p: 0.5, ..PLAIN }), [false, true, false, false]);
        assert_eq!(seen(Sampling { top_p: 0.7, ..PLAIN }), [false, true, true, false]);
        assert_eq!(seen(Sampling { min_p: 0.1, ..PLAIN }), [false, true, true, true]);
        assert_eq!(seen(Sampling { temperature: 0.0, ..PLAIN }), [false, true, false, false]);
    }

    #[test]
    fn nothing_is_chosen_of_nothing() {
        assert_eq!(Sampler::new(PLAIN).sample(&[]), None);
        assert_eq!(Sampler::new(PLAIN).sample(&[0.0, f32::NAN]), None);
    }
}
