//! Sums of the squared inputs of every matrix, and a sketch of their products ([`crate::sketch`]): what an
//! importance matrix is made of.

use super::config::Config;
use super::weights::Role;
use crate::sketch::{SKETCH, signs};
use crate::team;

/// A place in a model where rows enter matrices; several matrices may share it.
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

/// Sums over all rows that it saw.
#[derive(Debug, Clone)]
pub struct Collector {
    n_layer: usize,
    sites: Vec<Sums>,
    /// Of the longest rows; those of shorter ones are the first.
    signs: Vec<f32>,
}

/// The sums of one place.
#[derive(Debug, Clone)]
pub struct Sums {
    /// Of the squares, a column each.
    pub squares: Vec<f64>,
    /// [`SKETCH`] numbers of each column.
    pub sketch: Vec<f64>,
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
        let sums = |site| Sums {
            squares: vec![0.0; width(site)],
            sketch: vec![0.0; width(site) * SKETCH],
            count: 0,
        };
        let longest = (0..n_sites).map(width).max().unwrap_or(0);
        Self {
            n_layer: config.n_layer,
            sites: (0..n_sites).map(sums).collect(),
            signs: signs(longest),
        }
    }

    /// What the matrix of that role was multiplied by; None where the role has no matrix.
    pub fn sums(&self, role: Role, layer: Option<usize>) -> Option<&Sums> {
        let site = Site::of(role)?;
        let layer = if site == Site::Output { 0 } else { layer.filter(|&i| i < self.n_layer)? };
        Some(&self.sites[self.place(site, layer)])
    }

    fn place(&self, site: Site, layer: usize) -> usize {
        match site {
            Site::Output => self.n_layer * IN_LAYER,
            _ => layer * IN_LAYER + site as usize,
        }
    }

    pub(super) fn add(&mut self, site: Site, layer: usize, rows: &[f32]) {
        let place = self.place(site, layer);
        let sums = &mut self.sites[place];
        let width = sums.squares.len();
        sums.count += (rows.len() / width) as u64;
        team::for_each_chunk(&mut sums.squares, COLUMNS, |i, squares| {
            for row in rows.chunks_exact(width) {
                for (sum, &x) in squares.iter_mut().zip(&row[i * COLUMNS..]) {
                    *sum += f64::from(x) * f64::from(x);
                }
            }
        });
        let mut along = vec![[0f32; SKETCH]; rows.len() / width];
        team::for_each_chunk(&mut along, 1, |r, along| {
            let row = &rows[r * width..][..width];
            for (&x, signs) in row.iter().zip(self.signs.as_chunks::<SKETCH>().0) {
                add_multiple(&mut along[0], x, signs);
            }
        });
        team::for_each_chunk(&mut sums.sketch, COLUMNS * SKETCH, |i, sketch| {
            let mut products = [[0f32; SKETCH]; COLUMNS];
            for (row, along) in rows.chunks_exact(width).zip(&along) {
                for (products, &x) in products.iter_mut().zip(&row[i * COLUMNS..]) {
                    add_multiple(products, x, along);
                }
            }
            for (sum, &product) in sketch.iter_mut().zip(products.as_flattened()) {
                *sum += f64::from(product);
            }
        });
    }
}

#[inline]
fn add_multiple(sums: &mut [f32; SKETCH], x: f32, of: &[f32; SKETCH]) {
    for (sum, v) in sums.iter_mut().zip(of) {
        *sum += x * v;
    }
}
