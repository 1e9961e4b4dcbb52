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
    Output,
}

const IN_LAYER: usize = 4;

impl Site {
    fn of(role: Role) -> Option<Self> {
        match role {
            Role::AttnQ | Role::AttnK | Role::AttnV => Some(Self::Attention),
            Role::AttnOutput => Some(Self::AttnOutput),
            Role::FfnGate | Role::FfnUp => Some(Self::Ffn),
            Role::FfnDown => Some(Self::FfnDown),
            Role::Output => Some(Self::Output),
            _ => None,
        }
    }
}

/// Sums over the inputs of all matrices of a model.
#[derive(Debug, Clone)]
pub struct Collector {
    n_layer: usize,
    sites: Vec<InputSums>,
}

impl Collector {
    pub(super) fn new(config: &Config) -> Self {
        let width = |site: usize| {
            [config.n_embd, config.n_query(), config.n_embd, config.n_ff][site % IN_LAYER]
        };
        let n_sites = config.n_layer * IN_LAYER + 1; // and one for the output matrix
        let sums = |site| {
            let is_down = site % IN_LAYER == Site::FfnDown as usize;
            InputSums::new(width(site), 1, usize::from(are_correlated(width(site), is_down)))
                .expect("a model's rows have columns")
        };
        Self { n_layer: config.n_layer, sites: (0..n_sites).map(sums).collect() }
    }

    /// The sums over the inputs of a matrix; None if the role has no matrix.
    pub fn sums(&self, role: Role, layer: Option<usize>) -> Option<&InputSums> {
        let site = Site::of(role)?;
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

    pub(super) fn add(&mut self, isa: Isa, site: Site, layer: usize, rows: &[f32]) {
        let index = self.index(site, layer);
        self.sites[index].add_dense(isa, rows);
    }
}
