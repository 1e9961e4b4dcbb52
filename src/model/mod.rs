//! The runtime: a transformer on quantized weights, dense or a mixture of experts, evaluated in batches or token by token.
//!
//! It does not depend on file formats or on names of architectures. A [`Config`] describes the model, a [`Builder`]
//! takes its tensors by role, and a [`Model`] evaluates tokens for any number of [`Sequence`]s. States are f32, weights
//! stay in their tensor types, keys and values are f16.

mod attention;
mod collector;
mod config;
mod error;
mod feed_forward;
mod fisher;
mod forward;
mod kv_cache;
mod ops;
mod role;
mod rope;
mod sampling;
mod weights;

pub use collector::Collector;
pub use config::{Activation, Config, Experts, Local, Pairs, Temperature};
pub use error::ModelError;
pub use fisher::Fisher;
pub use forward::{BATCH, Model, Request, Trace};
pub use kv_cache::Sequence;
pub use role::Role;
pub use rope::{RopeConfig, Yarn};
pub use sampling::{Sampler, Sampling};
pub use weights::Builder;
