//! Mapped files that become shorter while they are in use.
//!
//! Reading a page of a mapping beyond the file's end raises SIGBUS, which ends the process. Therefore mappings in use
//! are registered here ([`Watch`]). A signal handler puts zeros in place of the lost pages of such a mapping, and marks
//! the mapping. Work continues with zeros; the caller must check [`Watch`] afterwards. Any other SIGBUS goes to the
//! handler that was installed before.
//!
//! This is for Unix only. On other systems, a mapped file cannot become shorter.

/// A mapping that is in use. It must be dropped before the mapping is removed.
#[derive(Debug)]
pub struct Watch(#[cfg(unix)] &'static unix::Range);

impl Watch {
    /// Watches the memory of a mapping.
    pub fn new(mapping: &[u8]) -> Self {
        #[cfg(unix)]
        return Self(unix::watch(mapping));
        #[cfg(not(unix))]
        {
            let _ = mapping;
            Self()
        }
    }

    /// Whether a lost page was read, and replaced by zeros.
    pub fn is_lost(&self) -> bool {
        #[cfg(unix)]
        return self.0.is_lost();
        #[cfg(not(unix))]
        false
    }
}

#[cfg(unix)]
impl Drop for Watch {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(unix)]
mod unix {
    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::ptr::{null, null_mut};
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
    use std::sync::{Mutex, Once, OnceLock};

    /// Addresses of a mapping: a node of a list. The list only grows, so the handler may iterate over it at any time.
    #[derive(Debug)]
    pub(super) struct Range {
        /// 0 if the node is unused.
        start: AtomicUsize,
        end: AtomicUsize,
        is_lost: AtomicBool,
        next: Option<&'static Range>,
    }

    static RANGES: AtomicPtr<Range> = AtomicPtr::new(null_mut());

    /// Locked while a node is taken. The handler does not lock it.
    static TAKING: Mutex<()> = Mutex::new(());

    /// The previous handler of the signal; set when our handler is installed.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    static PAGE: AtomicUsize = AtomicUsize::new(0);

    fn ranges() -> impl Iterator<Item = &'static Range> {
        // SAFETY: nodes are never freed, and they are complete when they enter the list.
        let first = unsafe { RANGES.load(Ordering::Acquire).as_ref() };
        std::iter::successors(first, |range| range.next)
    }

    impl Range {
        fn take(&self, start: usize, end: usize) {
            self.is_lost.store(false, Ordering::Relaxed);
            self.end.store(end, Ordering::Relaxed);
            self.start.store(start, Ordering::Release); // last, because it makes the node visible to the handler
        }

        pub(super) fn release(&self) {
            self.start.store(0, Ordering::Release);
        }

        pub(super) fn is_lost(&self) -> bool {
            self.is_lost.load(Ordering::Acquire)
        }
    }

    pub(super) fn watch(mapping: &[u8]) -> &'static Range {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        let addresses = mapping.as_ptr_range();
        let (start, end) = (addresses.start as usize, addresses.end as usize);
        let _taking = TAKING.lock().expect("no panic holds the lock");
        if let Some(range) = ranges().find(|range| range.start.load(Ordering::Relaxed) == 0) {
            range.take(start, end);
            return range;
        }
        let range: &'static mut Range = Box::leak(Box::new(Range {
            start: AtomicUsize::new(start),
            end: AtomicUsize::new(end),
            is_lost: AtomicBool::new(false),
            next: ranges().next(),
        }));
        RANGES.store(range, Ordering::Release);
        ranges().next().expect("just made")
    }

    fn install() {
        // SAFETY: system calls with their own structures; the handler does only what signal handlers may do.
        unsafe {
            PAGE.store(libc::sysconf(libc::_SC_PAGESIZE) as usize, Ordering::Relaxed);
            let mut before = MaybeUninit::<libc::sigaction>::zeroed();
            if libc::sigaction(libc::SIGBUS, null(), before.as_mut_ptr()) != 0 {
                return;
            }
            let _ = BEFORE.set(before.assume_init());
            let mut ours = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            ours.sa_sigaction = on_fault as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut ours.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const ours, null_mut());
        }
    }

    /// The signal handler. It may interrupt anything, so it neither locks nor allocates.
    extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the pointers come from the kernel. A positive code means that a fault raised the signal.
        let (address, is_fault) = unsafe { ((*info).si_addr() as usize, (*info).si_code > 0) };
        let holds = |range: &&Range| {
            let start = range.start.load(Ordering::Acquire);
            start != 0 && (start..range.end.load(Ordering::Relaxed)).contains(&address)
        };
        if let Some(range) = ranges().find(holds).filter(|_| is_fault) {
            let page = address & !(PAGE.load(Ordering::Relaxed) - 1);
            // The pages after this one are lost, too.
            let length = range.end.load(Ordering::Relaxed) - page;
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_ANONYMOUS;
            // SAFETY: these pages belong to the mapping, which is only read.
            let zeros =
                unsafe { libc::mmap(page as *mut c_void, length, libc::PROT_READ, flags, -1, 0) };
            if zeros != libc::MAP_FAILED {
                range.is_lost.store(true, Ordering::Release);
                return;
            }
        }
        let Some(before) = BEFORE.get() else { return };
        let action = before.sa_sigaction;
        // SAFETY: the previous handler, called as its flags require.
        unsafe {
            if action == libc::SIG_DFL || action == libc::SIG_IGN {
                // the fault is raised again, now without our handler
                libc::sigaction(signal, before, null_mut());
                if !is_fault {
                    libc::raise(signal);
                }
            } else if before.sa_flags & libc::SA_SIGINFO != 0 {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(action);
                handler(signal, info, context);
            } else {
                let handler: extern "C" fn(c_int) = std::mem::transmute(action);
                handler(signal);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::Watch;
        use std::fs::File;
        use std::os::fd::AsRawFd;
        use std::ptr::null_mut;

        /// A file of `length` bytes 7, mapped.
        fn map(name: &str, length: usize) -> (File, &'static [u8]) {
            let path = std::env::temp_dir().join(format!("q4hifi-{}-{name}", std::process::id()));
            std::fs::write(&path, vec![7u8; length]).unwrap();
            let file = File::options().read(true).write(true).open(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let (shared, fd) = (libc::MAP_SHARED, file.as_raw_fd());
            // SAFETY: a new mapping of a file of that length, which nobody unmaps.
            let bytes = unsafe {
                let at = libc::mmap(null_mut(), length, libc::PROT_READ, shared, fd, 0);
                assert_ne!(at, libc::MAP_FAILED);
                std::slice::from_raw_parts(at.cast::<u8>(), length)
            };
            (file, bytes)
        }

        /// Reads without letting the compiler know what is there.
        fn read(bytes: &[u8], at: usize) -> u8 {
            // SAFETY: within the slice.
            unsafe { bytes.as_ptr().add(at).read_volatile() }
        }

        #[test]
        fn what_a_file_loses_reads_as_zeros_and_is_noticed() {
            const LENGTH: usize = 1 << 20;
            let (file, bytes) = map("lost", LENGTH);
            let (_other_file, other) = map("kept", LENGTH);
            let (watch, kept) = (Watch::new(bytes), Watch::new(other));
            assert_eq!(read(bytes, LENGTH - 1), 7);
            file.set_len(1 << 16).unwrap();
            assert_eq!((read(bytes, 100), watch.is_lost()), (7, false));
            assert_eq!((read(bytes, LENGTH - 1), watch.is_lost()), (0, true));
            assert_eq!((read(bytes, (1 << 16) + 5), read(bytes, 1 << 19)), (0, 0));
            assert_eq!((read(other, LENGTH - 1), kept.is_lost()), (7, false));
            drop(watch);
            assert!(!Watch::new(other).is_lost(), "a node that is used again begins anew");
        }
    }
}
