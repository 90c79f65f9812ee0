//! Threads that share the work of a step: hundreds of products, of some 100 µs each.
//!
//! A thread that sleeps takes as long to wake as it would work, so these look out for the next
//! product for a while before they sleep. Whoever has work takes part in it, and does not wait for
//! a thread that has not come by the time it is done.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks out for work: longer than what one thread does between two products.
const PATIENCE: Duration = Duration::from_micros(200);
/// Looks for work between two at the clock, and looks of who waits for the others before it offers
/// its processor.
const LOOKS: usize = 32;
const PATIENT_LOOKS: usize = 1024;
/// Of the gate: how many threads are inside, whether more may enter, and the number of the job.
const INSIDE: u64 = (1 << 16) - 1;
const OPEN: u64 = 1 << 16;
const NEXT: u64 = 1 << 17;

/// The team of this process: as many threads as rayon would use.
pub fn shared() -> &'static Team {
    static SHARED: OnceLock<Team> = OnceLock::new();
    SHARED.get_or_init(|| Team::new(rayon::current_num_threads()))
}

/// That team where work is worth a second thread, else one of the caller alone.
pub fn shared_if(worth: bool) -> &'static Team {
    static ALONE: OnceLock<Team> = OnceLock::new();
    if worth {
        shared()
    } else {
        ALONE.get_or_init(|| Team::new(1))
    }
}

/// Some threads, the caller's among them.
pub struct Team {
    core: Arc<Core>,
    helpers: Vec<Helper>,
}

struct Core {
    /// Held by the thread whose work is done.
    turn: Mutex<()>,
    gate: AtomicU64,
    /// Written while the gate is closed and nobody inside, read inside.
    job: UnsafeCell<Option<Job>>,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    over: AtomicBool,
}

struct Helper {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

// SAFETY: of the job, as it says there.
unsafe impl Sync for Core {}

/// Work that is only called inside the gate, and borrowed until all have left it.
#[derive(Clone, Copy)]
struct Job(&'static (dyn Fn() + Sync));

impl Team {
    pub fn new(threads: usize) -> Self {
        let core = Arc::new(Core {
            turn: Mutex::default(),
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::default(),
            over: AtomicBool::new(false),
        });
        // A thread that the system refuses is one less.
        let helpers = (1..threads).filter_map(|_| Helper::start(core.clone()).ok()).collect();
        Self { core, helpers }
    }

    pub fn threads(&self) -> usize {
        1 + self.helpers.len()
    }

    /// Calls `work` for parts of `0..count`; threads take the next part when they have done one.
    ///
    /// Parts become smaller towards the end, down to `least`, so that threads end together.
    pub fn spread(&self, count: usize, least: usize, work: impl Fn(Range<usize>) + Sync) {
        assert!(least > 0, "a part is something");
        if self.helpers.is_empty() || least >= count {
            return work(0..count);
        }
        let (next, threads) = (AtomicUsize::new(0), self.threads());
        let end = |start: usize| count.min(start + ((count - start) / (2 * threads)).max(least));
        self.run(&|| {
            let take = |start| (start < count).then(|| end(start));
            while let Ok(start) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                work(start..end(start));
            }
        });
    }

    /// Calls `work` with every chunk of so many numbers, and its index.
    pub fn chunks<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let (len, start) = (data.len(), Start(data.as_mut_ptr()));
        self.spread(len.div_ceil(size), 1, |parts| {
            for i in parts {
                let span = i * size..len.min((i + 1) * size);
                // SAFETY: the span is inside, and each chunk is given to one thread.
                work(i, unsafe { start.span(span) });
            }
        });
    }

    /// Calls `work` on every thread that comes before it returns here.
    fn run(&self, work: &(dyn Fn() + Sync)) {
        let core = &self.core;
        let _turn = match core.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            // The others work for another thread.
            Err(TryLockError::WouldBlock) => return work(),
        };
        // SAFETY: the gate is closed, and nobody inside. `Closing` waits for all who may call the
        // work, and then nobody does.
        unsafe {
            let job = std::mem::transmute::<&(dyn Fn() + Sync), &'static _>(work);
            *core.job.get() = Some(Job(job));
        }
        *lock(&core.panic) = None; // of work that the caller did not survive either
        let closing = Closing(&core.gate);
        core.gate.fetch_add(NEXT | OPEN, Ordering::SeqCst);
        self.helpers.iter().for_each(|helper| helper.wake());
        work();
        drop(closing);
        if let Some(panic) = lock(&core.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.core.over.store(true, Ordering::SeqCst);
        self.helpers.iter().for_each(|helper| helper.thread.unpark());
    }
}

impl Core {
    /// Works and looks out for work until the team is no more.
    fn help(&self, asleep: &AtomicBool) {
        let (mut served, mut since) = (0, Instant::now());
        while !self.over.load(Ordering::SeqCst) {
            if (0..LOOKS).any(|_| self.enter(&mut served)) {
                since = Instant::now();
            } else if since.elapsed() > PATIENCE {
                asleep.store(true, Ordering::SeqCst);
                let gate = self.gate.load(Ordering::SeqCst);
                if gate & OPEN == 0 || gate / NEXT == served {
                    thread::park();
                }
                asleep.store(false, Ordering::SeqCst);
                since = Instant::now();
            } else {
                thread::yield_now();
            }
        }
    }

    /// Takes part in a job that is going on, once; whether there was one.
    fn enter(&self, served: &mut u64) -> bool {
        let gate = self.gate.load(Ordering::Acquire);
        let open = gate & OPEN > 0 && gate / NEXT != *served;
        let inside = Ordering::AcqRel;
        if !open || self.gate.compare_exchange(gate, gate + 1, inside, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
            return false;
        }
        *served = gate / NEXT;
        // SAFETY: this thread is inside.
        if let Some(Job(work)) = unsafe { *self.job.get() } {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                *lock(&self.panic) = Some(panic);
            }
        }
        self.gate.fetch_sub(1, Ordering::Release);
        true
    }
}

impl Helper {
    fn start(core: Arc<Core>) -> std::io::Result<Self> {
        let asleep = Arc::new(AtomicBool::new(false));
        let own = asleep.clone();
        let thread = thread::Builder::new().name("moshi-pipe-team".into());
        let thread = thread.spawn(move || core.help(&own))?.thread().clone();
        Ok(Self { thread, asleep })
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

/// Closes the gate, and waits until all have left.
struct Closing<'a>(&'a AtomicU64);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.0.load(Ordering::Acquire) & INSIDE > 0 {
            looks += 1;
            // Where others want the processor too, one of these may be waiting for it.
            if looks % PATIENT_LOOKS == 0 {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// Where numbers start of which threads take different spans.
struct Start<T>(*mut T);

// SAFETY: spans are different.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    /// # Safety
    ///
    /// The numbers must be there, and no other thread may have any of them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn span(&self, span: Range<usize>) -> &mut [T] {
        std::slice::from_raw_parts_mut(self.0.add(span.start), span.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_job_after_job() {
        for threads in 1..=4 {
            let team = Team::new(threads);
            let mut counts = vec![0u32; 1000];
            for job in 1..300 {
                team.chunks(&mut counts, 1 + job % 7, |_, counts| {
                    counts.iter_mut().for_each(|count| *count += 1);
                });
            }
            assert!(counts.iter().all(|&count| count == 299), "{threads} threads");
        }
    }

    #[test]
    fn chunks_are_told_their_place() {
        let mut numbers = [0; 10];
        Team::new(2).chunks(&mut numbers, 4, |i, numbers| numbers.fill(i));
        assert_eq!(numbers, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn a_helper_that_sleeps_is_woken() {
        let team = Team::new(2);
        let came = AtomicUsize::new(0);
        while !team.helpers[0].asleep.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        // Neither part ends before both have begun.
        team.spread(2, 1, |_| {
            came.fetch_add(1, Ordering::SeqCst);
            while came.load(Ordering::SeqCst) < 2 {
                std::hint::spin_loop();
            }
        });
    }

    #[test]
    fn who_finds_the_team_at_work_works_alone() {
        let team = Team::new(2);
        let inner = AtomicUsize::new(0);
        team.spread(2, 1, |_| {
            team.spread(5, 1, |parts| {
                inner.fetch_add(parts.len(), Ordering::SeqCst);
            });
        });
        assert_eq!(inner.load(Ordering::SeqCst), 10);
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3);
        for bad in 0..20 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.spread(20, 1, |parts| assert!(!parts.contains(&bad), "part {bad}"));
            }));
            assert!(outcome.is_err(), "{bad}");
        }
        let mut numbers = [0; 9];
        team.chunks(&mut numbers, 1, |i, numbers| numbers[0] = i);
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
