//! Sums over the inputs of every matrix of a model ([`crate::feedback::InputSums`]).

use super::config::Config;
use super::role::Role;
use crate::feedback::{InputSums, correlations::are_correlated};
use crate::isa::Isa;

/// A point in a model where rows enter matrices; several matrices may share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Site {
    /// Queries, keys and values.
    Attention,
    AttnOutput,
    /// Gate and up.
    Ffn,
    FfnDown,
    /// The router of a mixture of experts.
    Router,
    Output,
}

const IN_LAYER: usize = 5;

impl Site {
    fn of(role: Role) -> Option<Self> {
        match role {
            Role::AttnQ | Role::AttnK | Role::AttnV => Some(Self::Attention),
            Role::AttnOutput => Some(Self::AttnOutput),
            Role::FfnGate | Role::FfnUp | Role::FfnGateExps | Role::FfnUpExps => Some(Self::Ffn),
            Role::FfnDown | Role::FfnDownExps => Some(Self::FfnDown),
            Role::FfnGateInp => Some(Self::Router),
            Role::Output => Some(Self::Output),
            _ => None,
        }
    }
}

/// Sums over the inputs of all matrices of a model.
#[derive(Debug, Clone)]
pub struct Collector {
    n_layer: usize,
    is_mixture: bool,
    sites: Vec<InputSums>,
}

impl Collector {
    /// Empty sums. `expert_products` is for experts whose inputs are their own.
    pub(super) fn new(config: &Config, expert_products: bool) -> Self {
        let (n_embd, experts) = (config.n_embd, config.experts.map(|experts| experts.count));
        let stack = experts.unwrap_or(1);
        let own = if experts.is_none() || expert_products { stack } else { 0 };
        // columns, matrices and sums of products of each site
        let in_layer = [
            (n_embd, 1, 1),
            (config.n_query(), 1, 1),
            (n_embd, stack, 1), // the experts' inputs are taken together
            (config.n_ff, stack, own),
            (n_embd, 1, 0), // a router is not quantized
        ];
        let n_sites = config.n_layer * IN_LAYER + 1; // and one for the output matrix
        let sums = |site: usize| {
            let (width, n_matrices, n_products) = in_layer[site % IN_LAYER];
            let is_down = site % IN_LAYER == Site::FfnDown as usize;
            let n_products = if are_correlated(width, is_down) { n_products } else { 0 };
            InputSums::new(width, n_matrices, n_products).expect("a model's rows have columns")
        };
        let sites = (0..n_sites).map(sums).collect();
        Self { n_layer: config.n_layer, is_mixture: experts.is_some(), sites }
    }

    /// The sums over the inputs of a matrix; None if the role has no matrix.
    pub fn sums(&self, role: Role, layer: Option<usize>) -> Option<&InputSums> {
        let site = Site::of(role)?;
        if site == Site::Router && !self.is_mixture {
            return None;
        }
        let layer = if site == Site::Output { 0 } else { layer.filter(|&i| i < self.n_layer)? };
        Some(&self.sites[self.index(site, layer)])
    }

    /// Adds the sums of `other` to these and sets those to zero.
    ///
    /// Returns false, and changes nothing, if `other` belongs to a model of another shape.
    pub fn take(&mut self, other: &mut Self) -> bool {
        let alike = |(a, b): (&InputSums, &InputSums)| a.is_alike(b);
        if self.sites.len() != other.sites.len() || !self.sites.iter().zip(&other.sites).all(alike)
        {
            return false;
        }
        self.sites.iter_mut().zip(&mut other.sites).all(|(sums, other)| sums.take(other))
    }

    fn index(&self, site: Site, layer: usize) -> usize {
        match site {
            Site::Output => self.n_layer * IN_LAYER,
            _ => layer * IN_LAYER + site as usize,
        }
    }

    /// Adds the inputs `rows`. `experts` has, row by row, the experts that a row goes to; None if the site has one
    /// matrix.
    pub(super) fn add(
        &mut self,
        isa: Isa,
        site: Site,
        layer: usize,
        rows: &[f32],
        experts: Option<&[i32]>,
    ) {
        let index = self.index(site, layer);
        match experts {
            None => self.sites[index].add_dense(isa, rows),
            Some(experts) => {
                self.sites[index].add(isa, rows, experts).expect("routes go to experts");
            }
        }
    }
}
