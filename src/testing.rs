//! Inputs for tests: reproducible, no dependency.

/// Values of a small linear congruential generator, uniform in -1..1.
fn uniform(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// Bell-shaped weights with a few large ones, as trained matrices have them.
pub fn weights(n: usize, seed: u64) -> Vec<f32> {
    let mut numbers = uniform(seed);
    let mut next = || numbers.next().expect("the generator has no end");
    (0..n)
        .map(|_| {
            let bell = next() + next() + next() + next();
            if next() > 0.98 { bell * 0.12 } else { bell * 0.02 }
        })
        .collect()
}

/// Importances over a few orders of magnitude, none negative.
pub fn importance(n: usize, seed: u64) -> Vec<f32> {
    uniform(seed).take(n).map(|v| (3.0 * v).exp()).collect()
}
