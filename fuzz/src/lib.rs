//! What the fuzz targets of cargo-fuzz share.

pub mod targets;

/// Lets rayon work in the calling thread alone: to wake others would take longer than the work.
pub fn work_in_this_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("no pool was built before");
}
