//! InputSums of the squared inputs of every matrix, and of their products ([`crate::feedback::correlations`]): what an
//! importance matrix is made of.

use super::config::Config;
use super::role::Role;
use crate::block::QK;
use crate::feedback::correlations::{GROUP, ProductSums};
use crate::isa::Isa;
use crate::team;

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

/// InputSums over all rows that it saw.
#[derive(Debug, Clone)]
pub struct Collector {
    n_layer: usize,
    sites: Vec<InputSums>,
}

/// The sums of one site.
#[derive(Debug, Clone)]
pub struct InputSums {
    /// Of the squares, a column each.
    pub squares: Vec<f64>,
    /// Of the products of two; None where nothing would ask for them.
    pub products: Option<ProductSums>,
    /// Rows.
    pub count: u64,
}

/// Columns that a thread adds up.
const COLUMNS: usize = 256;

impl Collector {
    pub(super) fn new(config: &Config) -> Self {
        let width = |site: usize| {
            [config.n_embd, config.n_query(), config.n_embd, config.n_ff][site % IN_LAYER]
        };
        let n_sites = config.n_layer * IN_LAYER + 1; // the output's is one of n_embd
        let sums = |site| InputSums {
            squares: vec![0.0; width(site)],
            products: asked_for(site, width(site)).then(|| ProductSums::new(width(site))),
            count: 0,
        };
        Self { n_layer: config.n_layer, sites: (0..n_sites).map(sums).collect() }
    }

    /// What the matrix of that role was multiplied by; None where the role has no matrix.
    pub fn sums(&self, role: Role, layer: Option<usize>) -> Option<&InputSums> {
        let site = Site::of(role)?;
        let layer = if site == Site::Output { 0 } else { layer.filter(|&i| i < self.n_layer)? };
        Some(&self.sites[self.index(site, layer)])
    }

    /// Adds the sums of `other` to these and sets those to zero.
    ///
    /// Returns false, and changes nothing, where `other` is of a model of another shape.
    pub fn take(&mut self, other: &mut Self) -> bool {
        let shape = |of: &Self| -> Vec<(usize, bool)> {
            of.sites.iter().map(|sums| (sums.squares.len(), sums.products.is_some())).collect()
        };
        if shape(self) != shape(other) {
            return false;
        }
        for (sums, others) in self.sites.iter_mut().zip(&mut other.sites) {
            sums.count += std::mem::take(&mut others.count);
            for (sum, other) in sums.squares.iter_mut().zip(&mut others.squares) {
                *sum += std::mem::take(other);
            }
            if let (Some(products), Some(others)) = (&mut sums.products, &mut others.products) {
                products.take(others);
            }
        }
        true
    }

    fn index(&self, site: Site, layer: usize) -> usize {
        match site {
            Site::Output => self.n_layer * IN_LAYER,
            _ => layer * IN_LAYER + site as usize,
        }
    }

    pub(super) fn add(&mut self, isa: Isa, site: Site, layer: usize, rows: &[f32]) {
        let index = self.index(site, layer);
        let sums = &mut self.sites[index];
        let width = sums.squares.len();
        sums.count += (rows.len() / width) as u64;
        team::for_each_chunk(&mut sums.squares, COLUMNS, |i, squares| {
            for row in rows.chunks_exact(width) {
                for (sum, &x) in squares.iter_mut().zip(&row[i * COLUMNS..]) {
                    *sum += f64::from(x) * f64::from(x);
                }
            }
        });
        if let Some(products) = &mut sums.products {
            products.add(isa, rows);
        }
    }
}

/// Whether errors of what is multiplied by the inputs of a site can cancel, and do. Those of types of blocks can.
/// The products that ffn_down sees are nearly independent: on rows of 8960 a fifth of what the other matrices
/// gain is not worth their length.
fn asked_for(site: usize, width: usize) -> bool {
    let is_down = site % IN_LAYER == Site::FfnDown as usize;
    width.is_multiple_of(QK) && !(is_down && width > GROUP)
}
