//! A handful of scoped threads for requests that wait for storage.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::call;

/// Most threads for one piece of work: what object stores like to see in flight.
const MAX_THREADS: usize = 64;

/// Applies `f` to every item on up to `threads` threads (the calling one included) and gives the
/// results in the items' order. Blocks until all are done. When the system gives no more threads,
/// fewer do the work.
pub fn parallel_map<T, R, F>(items: &[T], threads: usize, f: F) -> Vec<R>
where
    T: Sync,
    R: Send,
    F: Fn(&T) -> R + Sync,
{
    let threads = threads.clamp(1, MAX_THREADS).min(items.len());
    if threads <= 1 {
        return items.iter().map(f).collect();
    }
    let next = AtomicUsize::new(0);
    let call = call::current();
    let work = || {
        let mut done = Vec::new();
        while let Some(item) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            items.get(index).map(|item| (index, item))
        } {
            done.push((item.0, f(item.1)));
        }
        done
    };
    let mut results: Vec<(usize, R)> = Vec::with_capacity(items.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads)
            .map_while(|_| {
                let call = call.clone();
                let helper = std::thread::Builder::new();
                helper
                    .spawn_scoped(scope, || call::for_call(call, work))
                    .ok()
            })
            .collect();
        results.extend(work());
        for worker in workers {
            match worker.join() {
                Ok(done) => results.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u32> = (0..1000).collect();
        for threads in [0, 1, 3, 100] {
            let doubled = parallel_map(&items, threads, |n| n * 2);
            assert!(doubled.iter().zip(&items).all(|(d, n)| *d == n * 2));
            assert_eq!(doubled.len(), items.len());
        }
        assert!(parallel_map(&[0u8; 0], 4, |n| *n).is_empty());
    }
}
