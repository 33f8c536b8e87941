//! Memory that is allocated once and kept: zeroed, aligned, and in huge pages where the system has them.
//!
//! Matrix products access memory in strides, which misses the TLB: with huge pages they measured 7 to 10 %
//! faster. `madvise` is a hint; that it fails is no error.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// A huge page.
const PAGE: usize = 2 << 20;

/// A slice of f32 on the heap, zeros at first.
pub struct Buffer {
    start: NonNull<f32>,
    len: usize,
    /// What was allocated, which may begin before `start`.
    block: *mut u8,
    layout: Layout,
}

// SAFETY: it owns its memory, like a `Vec`.
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    pub fn new(len: usize) -> Self {
        let bytes = (len * size_of::<f32>()).max(64);
        // Whole huge pages: the last one if at least half of it is used, else the rest is in small pages.
        let huge = (bytes + PAGE / 2) / PAGE * PAGE;
        let (bytes, align) = if huge > 0 { (bytes.max(huge), PAGE) } else { (bytes, 64) };
        let layout = Layout::from_size_align(bytes, align).expect("a length that fits memory");
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start.cast::<f32>()) else { handle_alloc_error(layout) };
        if huge > 0 {
            // Before the first access, which is when pages are allocated.
            advise_huge_pages(start, huge);
        }
        // SAFETY: so many bytes were allocated; zeros are numbers.
        unsafe { start.as_ptr().cast::<u8>().write_bytes(0, bytes) };
        Buffer { start, len, block: start.as_ptr().cast(), layout }
    }

    /// The same, for memory of which parts may never be accessed: the system hands out pages when they are first
    /// accessed, and until then they cost nothing.
    pub fn untouched(len: usize) -> Self {
        let bytes = len * size_of::<f32>();
        if bytes < PAGE / 2 {
            return Self::new(len);
        }
        let huge = (bytes + PAGE / 2) / PAGE * PAGE;
        // Only of types without a special alignment the system's zeros are taken as they are.
        let layout = Layout::from_size_align(bytes.max(huge) + PAGE, 16).expect("a length that fits memory");
        // SAFETY: the size is not 0.
        let block = unsafe { alloc_zeroed(layout) };
        // SAFETY: a page more was allocated.
        let start = unsafe { block.add(block.align_offset(PAGE)) };
        let Some(start) = NonNull::new(start.cast::<f32>()).filter(|_| !block.is_null()) else {
            handle_alloc_error(layout)
        };
        advise_huge_pages(start, huge);
        Buffer { start, len, block, layout }
    }

    /// Makes a range zeros again, and gives its whole pages back to the system until they are accessed again.
    pub fn release(&mut self, range: Range<usize>) {
        let numbers = &mut self[range];
        let (mut rest, mut pages) = (numbers, &mut [][..]);
        if cfg!(target_os = "linux") {
            let until = rest.as_ptr().cast::<u8>().align_offset(SMALL_PAGE) / size_of::<f32>();
            if until < rest.len() {
                let (before, after) = rest.split_at_mut(until);
                let words = SMALL_PAGE / size_of::<f32>();
                let (whole, after) = after.split_at_mut(after.len() / words * words);
                before.fill(0.0);
                (pages, rest) = (whole, after);
            }
        }
        rest.fill(0.0);
        if !pages.is_empty() && !give_back(pages) {
            pages.fill(0.0);
        }
    }
}

/// The smallest page of the systems that this runs on is 4 KiB; some have pages of 64.
const SMALL_PAGE: usize = 64 << 10;

/// Whether the system took these pages back: they are zeros when they are accessed again.
#[cfg(target_os = "linux")]
fn give_back(pages: &mut [f32]) -> bool {
    let (start, bytes) = (pages.as_mut_ptr().cast(), size_of_val(pages));
    // SAFETY: whole pages of private memory, borrowed exclusively; their content is not needed any more.
    unsafe {
        libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE);
        libc::madvise(start, bytes, libc::MADV_DONTNEED) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn give_back(_: &mut [f32]) -> bool {
    false
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<f32>, bytes: usize) {
    // SAFETY: the range was allocated here, and the advice does not change its content.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<f32>, _: usize) {}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.block, self.layout) }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `len` numbers were allocated and zeroed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl std::iter::FromIterator<f32> for Buffer {
    fn from_iter<I: IntoIterator<Item = f32>>(all: I) -> Self {
        let all: Vec<f32> = all.into_iter().collect();
        let mut buffer = Buffer::new(all.len());
        buffer.copy_from_slice(&all);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_released_is_zero_and_the_rest_stays() {
        for (len, range) in [(100, 3..50), (1_500_000, 1_000..1_400_001), (1_500_000, 7..9)] {
            let mut buffer = Buffer::untouched(len);
            assert!(buffer.iter().all(|x| *x == 0.0));
            buffer.fill(1.5);
            buffer.release(range.clone());
            assert!(buffer.iter().enumerate().all(|(i, x)| *x == if range.contains(&i) { 0.0 } else { 1.5 }));
            buffer[range.clone()].fill(2.0);
            assert!(buffer[range].iter().all(|x| *x == 2.0));
        }
    }
}
