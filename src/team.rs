//! Threads for work in many short jobs. Generating text is such work: two hundred products per token, each of about ten
//! microseconds. Waking a sleeping thread takes longer than that. Therefore the threads of a [`Team`] spin while they
//! wait for the next job, and sleep only after a while without one.
//!
//! The caller works, too. It never waits for a thread that has not begun, so a busy machine makes the work slower, but
//! cannot block it. Without a team, `for_each_chunk` uses rayon.

use rayon::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps.
const PATIENCE: Duration = Duration::from_millis(1);

/// Calls `work` in parallel with the index of every chunk, and the chunk of `size` elements. The last may be shorter.
pub(crate) fn for_each_chunk<T: Send>(
    data: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let team = CURRENT.replace(None); // calls within the work use rayon
    let Some(shared) = &team else {
        data.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| work(i, chunk));
        return;
    };
    let (length, start) = (data.len(), Start(data.as_mut_ptr()));
    shared.run(length.div_ceil(size), &|i| {
        let n = size.min(length - i * size);
        // SAFETY: within `data`, and no other call has this `i`.
        work(i, unsafe { std::slice::from_raw_parts_mut(start.at(i * size), n) });
    });
    CURRENT.set(team);
}

/// The number of threads that `for_each_chunk` uses here.
pub(crate) fn count() -> usize {
    let team = CURRENT.take();
    let threads = team.as_ref().map(|shared| shared.threads);
    CURRENT.set(team);
    threads.unwrap_or_else(rayon::current_num_threads)
}

thread_local! {
    static CURRENT: Cell<Option<Arc<Shared>>> = const { Cell::new(None) };
}

/// The start of the data, shared by all threads.
struct Start<T>(*mut T);

// SAFETY: only disjoint parts of what it points to are used, and T may be sent.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    /// # Safety
    ///
    /// Element `i` is within the data.
    unsafe fn at(&self, i: usize) -> *mut T {
        // SAFETY: as the caller's: element `i` is within the data.
        unsafe { self.0.add(i) }
    }
}

/// The threads of a team: the caller of [`Team::install`], and helpers.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// The process that has the helpers.
    process: u32,
}

impl Team {
    /// A team of `threads` threads, including the caller. Fails if the system cannot create them.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            threads,
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            sleeping: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        });
        let mut team = Self { shared, helpers: Vec::new(), process: std::process::id() };
        for i in 1..threads {
            let shared = Arc::clone(&team.shared);
            let name = format!("q4hifi-{i}");
            let helper = std::thread::Builder::new().name(name).spawn(move || shared.help())?;
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// Whether this process has the helpers. A forked process does not.
    pub fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    /// Runs `work`; within it, `for_each_chunk` uses the team's threads. Takes `&mut self`: a team serves one caller
    /// at a time.
    pub fn install<R>(&mut self, work: impl FnOnce() -> R) -> R {
        /// Removes the team again, also if `work` panics.
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                CURRENT.set(None);
            }
        }
        CURRENT.set(Some(Arc::clone(&self.shared)));
        let _leave = Leave;
        work()
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if !self.is_here() {
            std::mem::forget(std::mem::take(&mut self.helpers)); // they do not exist here; joining them would block
            return;
        }
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.wake();
        for helper in self.helpers.drain(..) {
            let _ = helper.join(); // a helper's panic was printed when it happened
        }
    }
}

/// A job: a function, to be called with every number below `tasks`.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    threads: usize,
    /// The job's number, whether it is open (may be joined), and how many helpers have joined.
    state: AtomicU64,
    next: AtomicUsize,
    /// Helpers that have joined and are finished.
    finished: AtomicUsize,
    failed: AtomicBool,
    /// Written by the caller only while no job is open and no helper is in one.
    job: UnsafeCell<Option<Job>>,
    sleeping: AtomicUsize,
    ended: AtomicBool,
    bed: Mutex<()>,
    bell: Condvar,
}

const OPEN: u64 = 1 << 16;
const JOINED: u64 = OPEN - 1;
const NUMBER: u64 = !(OPEN | JOINED);
const ONE: u64 = OPEN << 1;

// SAFETY: the job is read only by helpers that joined while it was open, and written only while there are none. The
// function that it points to may be called by all threads at once.
unsafe impl Send for Shared {}
// SAFETY: see `Send`.
unsafe impl Sync for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Shared {
    /// Calls `work` with every number below `tasks`, on all threads. Returns after all calls.
    fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.threads == 1 {
            (0..tasks).for_each(work);
            return;
        }
        // SAFETY: only the lifetime is extended. Helpers use the function between joining and `finished`, and this call
        // returns only after all of them have finished.
        let work: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(work) };
        let job = Job { work, tasks };
        // SAFETY: no job is open, and all helpers of the last one have finished.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        self.finished.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) & NUMBER).wrapping_add(ONE);
        self.state.store(number | OPEN, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.work(job)));
        let joined = self.state.fetch_and(!OPEN, Ordering::AcqRel) & JOINED;
        let mut spins = Spins::default();
        while (self.finished.load(Ordering::Acquire) as u64) < joined {
            spins.wait();
        }
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
        assert!(!self.failed.swap(false, Ordering::Relaxed), "a thread of the team panicked");
    }

    /// Executes tasks until there are no more.
    fn work(&self, job: Job) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= job.tasks {
                return;
            }
            // SAFETY: `run` does not return before this thread has finished.
            unsafe { (*job.work)(task) };
        }
    }

    /// The main loop of a helper.
    fn help(&self) {
        let mut last = 0;
        while let Some(number) = self.wait(last) {
            last = number;
            // SAFETY: this thread has joined.
            let job = unsafe { *self.job.get() };
            let Some(job) = job else { continue };
            if catch_unwind(AssertUnwindSafe(|| self.work(job))).is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.finished.fetch_add(1, Ordering::Release);
        }
    }

    /// Waits for the next job after number `last`, and joins it. None if the team has ended.
    fn wait(&self, last: u64) -> Option<u64> {
        let mut spins = Spins::default();
        loop {
            if self.ended.load(Ordering::SeqCst) {
                return None;
            }
            let state = self.state.load(Ordering::Acquire);
            if self.is_new(state, last) {
                let joined = self.state.compare_exchange(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if joined.is_ok() {
                    return Some(state & NUMBER);
                }
            } else if spins.wait() > PATIENCE {
                self.sleep(last);
                spins = Spins::default();
            }
        }
    }

    fn is_new(&self, state: u64, last: u64) -> bool {
        state & OPEN != 0 && state & NUMBER != last
    }

    /// Sleeps until there is a new job. It may also return without one.
    fn sleep(&self, last: u64) {
        let bed = self.bed.lock().expect("nothing panics in bed");
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        if !self.is_new(state, last) && !self.ended.load(Ordering::SeqCst) {
            drop(self.bell.wait(bed).expect("nothing panics in bed"));
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        let _bed = self.bed.lock().expect("nothing panics in bed");
        self.bell.notify_all();
    }
}

/// Spinning that yields the CPU to other threads if it takes long.
#[derive(Default)]
struct Spins {
    count: u32,
    since: Option<Instant>,
}

impl Spins {
    /// Waits a moment. Returns the approximate total time.
    fn wait(&mut self) -> Duration {
        /// Spins between two looks at the clock, after which the thread yields.
        const FREE: u32 = 1 << 10;
        self.count += 1;
        if !self.count.is_multiple_of(FREE) {
            std::hint::spin_loop();
            return Duration::ZERO;
        }
        std::thread::yield_now();
        self.since.get_or_insert_with(Instant::now).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_worked_on_once() {
        for threads in [1, 2, 5] {
            let mut team = Team::new(threads).unwrap();
            let mut data = vec![0u32; 1003];
            for round in 1..2000u32 {
                let size = 1 + round as usize % 300;
                team.install(|| {
                    assert_eq!(count(), threads);
                    for_each_chunk(&mut data, size, |i, chunk| {
                        assert!(chunk.len() == size || (i + 1) * size > 1003);
                        chunk.iter_mut().for_each(|x| *x += 1);
                    });
                });
            }
            assert!(data.iter().all(|&x| x == 1999));
        }
    }

    #[test]
    fn a_team_that_slept_wakes_up() {
        let mut team = Team::new(3).unwrap();
        let mut data = [0u32; 64];
        for _ in 0..3 {
            std::thread::sleep(5 * PATIENCE);
            team.install(|| for_each_chunk(&mut data, 1, |_, x| x[0] += 1));
        }
        assert_eq!(data, [3; 64]);
    }

    /// Also within work that a team does.
    #[test]
    fn without_a_team_rayon_works() {
        let mut team = Team::new(2).unwrap();
        let mut data = [[0u32; 8]; 8];
        team.install(|| {
            for_each_chunk(&mut data, 1, |_, rows| {
                for_each_chunk(&mut rows[0], 3, |i, chunk| chunk.fill(i as u32));
            });
            for_each_chunk(&mut data, 2, |_, rows| rows[0][0] += 1);
        });
        for_each_chunk(&mut data, 8, |_, rows| rows[1][7] += 1);
        assert_eq!(data[0], [1, 0, 0, 1, 1, 1, 2, 2]);
        assert_eq!(data[1], [0, 0, 0, 1, 1, 1, 2, 3]);
    }

    #[test]
    fn a_panic_is_passed_on_and_the_team_lives() {
        let mut team = Team::new(2).unwrap();
        let mut data = [0u32; 16];
        let failing = || team.install(|| for_each_chunk(&mut data, 1, |i, _| assert_ne!(i, 7)));
        assert!(catch_unwind(AssertUnwindSafe(failing)).is_err());
        for_each_chunk(&mut data, 1, |_, x| x[0] += 1);
        assert_eq!(data, [1; 16]);
    }
}
