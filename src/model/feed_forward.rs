//! The feed-forward network of a layer, or its experts.

use super::config::{Activation, Config};
use super::error::ModelError;
use super::ops::{AddScaled, Gelu, Silu, apply, each_row};
use super::weights::{Mixture, Network};
use crate::float::exp;
use crate::isa::Isa;
use crate::simd::run_loop;

/// Sets `gate` to `activation(gate · x) * (up · x)`, the inputs of the matrix down.
pub(super) fn hidden(
    isa: Isa,
    config: &Config,
    network: &Network<'_>,
    x: &[f32],
    gate: &mut [f32],
    up: &mut [f32],
) -> Result<(), ModelError> {
    apply(isa, &network.gate, x, gate)?;
    apply(isa, &network.up, x, up)?;
    each_row(gate, config.n_ff, |i, gate| {
        let up = &up[i * config.n_ff..][..config.n_ff];
        match config.activation {
            Activation::Silu => run_loop(isa, Silu { gate, up }),
            Activation::Gelu => run_loop(isa, Gelu { gate, up }),
        }
    });
    Ok(())
}

/// The experts that tokens are routed to. A route is a token and one of its experts.
pub(super) struct Routes {
    used: usize,
    /// The expert of each route, `[tokens, used]`. The experts of a token are in the order of their weights.
    pub experts: Vec<i32>,
    /// The weight of each route in the sum of its token's outputs.
    pub weights: Vec<f32>,
    /// The routes, sorted by expert, then by token.
    sorted: Vec<usize>,
}

impl Routes {
    /// Chooses the experts of the tokens with the states `x`. Of experts with equal weights, the first is chosen.
    pub(super) fn new(mixture: &Mixture<'_>, x: &[f32]) -> Result<Self, ModelError> {
        let (router, used) = (&mixture.router, mixture.used);
        let count = router.rows();
        let mut scores = vec![0f32; x.len() / router.row_length() * count];
        router.matmul(x, &mut scores)?;
        let mut routes = Self { used, experts: vec![], weights: vec![], sorted: vec![] };
        for scores in scores.chunks_exact_mut(count) {
            let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|score| *score = exp(*score - greatest));
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a])); // stable
            order.truncate(used);
            let sum: f32 = order.iter().map(|&expert| scores[expert]).sum(); // at least 1
            routes.experts.extend(order.iter().map(|&expert| expert as i32));
            routes.weights.extend(order.iter().map(|&expert| scores[expert] / sum));
        }
        routes.sorted = (0..routes.experts.len()).collect();
        routes.sorted.sort_by_key(|&route| routes.experts[route]);
        Ok(routes)
    }

    /// The token of a route.
    pub(super) fn token(&self, route: usize) -> usize {
        route / self.used
    }

    /// Every expert that a token is routed to, in order, and its routes in the order of tokens.
    pub(super) fn by_expert(&self) -> impl Iterator<Item = (usize, &[usize])> {
        let of = |route: usize| self.experts[route];
        let same = self.sorted.chunk_by(move |&a, &b| of(a) == of(b));
        same.map(move |routes| (of(routes[0]) as usize, routes))
    }

    /// The expert of each route, in the order of [`Self::by_expert`].
    pub(super) fn sorted_experts(&self) -> Vec<i32> {
        self.sorted.iter().map(|&route| self.experts[route]).collect()
    }

    /// The rows of `x`, of `n` values, of the tokens of some routes.
    pub(super) fn gather(&self, routes: &[usize], x: &[f32], n: usize) -> Vec<f32> {
        routes.iter().flat_map(|&route| &x[self.token(route) * n..][..n]).copied().collect()
    }

    /// Adds the experts' outputs `rows`, of `n` values, times their weights to the rows of their tokens in `sums`.
    pub(super) fn add_weighted(
        &self,
        isa: Isa,
        routes: &[usize],
        rows: &[f32],
        n: usize,
        sums: &mut [f32],
    ) {
        for (&route, y) in routes.iter().zip(rows.chunks_exact(n)) {
            let x = &mut sums[self.token(route) * n..][..n];
            run_loop(isa, AddScaled { x, y, scale: self.weights[route] });
        }
    }
}

/// Sets `out` to the sums of the experts' outputs, for the states `x`.
///
/// `gate` and `up` have a row for each route, in the order of [`Routes::by_expert`]. `gate` is set to the inputs of the
/// matrices down. The outputs of a token are added in the order of its experts' indices, so the sum does not depend on
/// threads.
pub(super) fn mix(
    isa: Isa,
    config: &Config,
    mixture: &Mixture<'_>,
    routes: &Routes,
    x: &[f32],
    [mut gate, mut up]: [&mut [f32]; 2],
    out: &mut [f32],
) -> Result<(), ModelError> {
    out.fill(0.0);
    for (expert, routed) in routes.by_expert() {
        let network = mixture.expert(expert);
        let mut rows = routes.gather(routed, x, config.n_embd);
        let (own_gate, rest) = gate.split_at_mut(routed.len() * config.n_ff);
        gate = rest;
        let (own_up, rest) = up.split_at_mut(routed.len() * config.n_ff);
        up = rest;
        hidden(isa, config, &network, &rows, own_gate, own_up)?;
        apply(isa, &network.down, own_gate, &mut rows)?;
        routes.add_weighted(isa, routed, &rows, config.n_embd, out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::Matrix;
    use crate::rows::Source;

    /// The routes of tokens of one dimension, so that `router` has the logits of a token of 1.
    fn routes(router: &[f32], used: usize, x: &[f32]) -> Routes {
        let matrix = Matrix::new(Source::from_f32(router, 1).unwrap());
        let mixture = Mixture { used, router: matrix, gate: matrix, up: matrix, down: matrix };
        Routes::new(&mixture, x).unwrap()
    }

    #[test]
    fn the_greatest_logits_choose_and_weigh() {
        let found = routes(&[1.0, 3.0, -9.0, 2.0], 3, &[1.0, -1.0]);
        assert_eq!(found.experts, [1, 3, 0, 2, 0, 3]);
        let sum: f64 = [3f64, 2.0, 1.0].iter().map(|x| x.exp()).sum();
        for (weight, logit) in found.weights.iter().zip([3f64, 2.0, 1.0]) {
            assert!((f64::from(*weight) - logit.exp() / sum).abs() < 1e-6);
        }
        let sorted: Vec<(usize, Vec<usize>)> =
            found.by_expert().map(|(expert, routes)| (expert, routes.to_vec())).collect();
        assert_eq!(sorted, [(0, vec![2, 4]), (1, vec![0]), (2, vec![3]), (3, vec![1, 5])]);
        assert_eq!(found.sorted_experts(), [0, 0, 1, 2, 3, 3]);
        assert_eq!(found.gather(&[1, 5], &[7.0, 8.0], 1), [7.0, 8.0]);
    }

    #[test]
    fn of_equal_logits_the_first_are_chosen() {
        assert_eq!(routes(&[0.0; 40], 3, &[1.0]).experts, [0, 1, 2]);
        assert_eq!(routes(&[1.0, 2.0, 2.0, 2.0], 2, &[1.0]).experts, [1, 2]);
        assert_eq!(routes(&[0.0], 1, &[1.0]).weights, [1.0]);
    }

    #[test]
    fn states_that_are_not_finite_are_routed_somewhere() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let found = routes(&[1.0, f32::NAN, -1.0, 0.0], 2, &[x]);
            assert!(found.experts.len() == 2 && found.experts.iter().all(|e| (0..4).contains(e)));
            assert_ne!(found.experts[0], found.experts[1]);
        }
    }
}
