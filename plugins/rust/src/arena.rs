//! Memory for weights, which every step reads from end to end.
//!
//! What a processor knows of where pages lie covers a few MB of 4 kB pages; a model read through
//! them waits for the page tables more than for the memory, above all on a virtual machine. An
//! arena asks the system for pages of 2 MB, where it has such (Linux), and packs all matrices of a
//! model into them.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use candle::Result;
use memmap2::MmapMut;

/// Bytes of a huge page on x86-64 and on most ARM machines.
const HUGE: usize = 2 << 20;
/// Pages that nobody writes take no memory, so a chunk may be larger than what is put into it.
const CHUNK: usize = 64 << 20;
/// Of every piece: a cache line, and the widest vector.
const ALIGN: usize = 64;

/// Numbers that any bytes may be read as, and that own nothing.
///
/// # Safety
///
/// Every bit pattern must be a value.
pub unsafe trait Plain: Copy {}
// SAFETY: numbers without forbidden bit patterns.
unsafe impl Plain for f32 {}
unsafe impl Plain for half::bf16 {}
unsafe impl Plain for i8 {}

/// Numbers that can change; on huge pages too.
pub struct Buffer<T = f32> {
    map: MmapMut,
    skip: usize,
    len: usize,
    _type: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    pub fn zeros(len: usize) -> Result<Self> {
        let bytes = len * std::mem::size_of::<T>();
        // Less than a huge page would only take more memory on one.
        let (map, skip) =
            if bytes < HUGE { (MmapMut::map_anon(bytes.max(1))?, 0) } else { map_huge(bytes)? };
        Ok(Self { map, skip, len, _type: PhantomData })
    }

    pub fn of(values: &[T]) -> Result<Self> {
        let mut buffer = Self::zeros(values.len())?;
        buffer.copy_from_slice(values);
        Ok(buffer)
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the map has that many bytes there, aligned, and lives as long.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.skip).cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let at = self.map.as_mut_ptr();
        // SAFETY: as above, and it is borrowed for us alone.
        unsafe { std::slice::from_raw_parts_mut(at.add(self.skip).cast(), self.len) }
    }
}

/// Memory with `bytes` from a huge page's start, and where that is.
fn map_huge(bytes: usize) -> Result<(MmapMut, usize)> {
    let map = MmapMut::map_anon(bytes + HUGE)?;
    // A wish: on a system that has no such pages, numbers lie in its usual ones.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    let start = map.as_ptr() as usize;
    Ok((map, start.next_multiple_of(HUGE) - start))
}

/// Hands out pieces of huge pages; a chunk is freed with the last piece of it.
#[derive(Default)]
pub struct Arena {
    chunk: Option<Arc<MmapMut>>,
    /// Address of the first free byte of the chunk, and how many follow.
    free: (usize, usize),
}

/// Numbers in an arena, which live as long as anyone holds them.
pub struct Piece<T> {
    address: usize,
    len: usize,
    _chunk: Arc<MmapMut>,
    _type: PhantomData<T>,
}

impl Arena {
    /// Copies numbers into the arena, from a cache line's start.
    pub fn put<T: Plain>(&mut self, values: &[T]) -> Result<Piece<T>> {
        let bytes = std::mem::size_of_val(values).next_multiple_of(ALIGN);
        if bytes > self.free.1 || self.chunk.is_none() {
            self.grow(bytes)?;
        }
        let Some(chunk) = &self.chunk else { candle::bail!("an arena without memory") };
        let address = self.free.0;
        self.free = (address + bytes, self.free.1 - bytes);
        // SAFETY: `grow` left that many bytes, which no piece has had before.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), address as *mut T, values.len()) };
        Ok(Piece { address, len: values.len(), _chunk: chunk.clone(), _type: PhantomData })
    }

    fn grow(&mut self, bytes: usize) -> Result<()> {
        let len = bytes.max(CHUNK);
        let (mut map, skip) = map_huge(len)?;
        self.free = (map.as_mut_ptr() as usize + skip, len);
        self.chunk = Some(Arc::new(map));
        Ok(())
    }
}

impl<T: Plain> Deref for Piece<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `put` wrote these numbers, nobody writes them again, and the chunk is held.
        unsafe { std::slice::from_raw_parts(self.address as *const T, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zero_and_keeps_what_is_written() -> Result<()> {
        for len in [1000, HUGE] {
            let mut buffer = Buffer::<f32>::zeros(len)?;
            assert!(buffer.len() == len && buffer.iter().all(|&number| number == 0.0));
            buffer[999] = 3.0;
            assert_eq!((buffer[998], buffer[999]), (0.0, 3.0));
            assert!(len < HUGE || (buffer.as_ptr() as usize).is_multiple_of(HUGE));
        }
        Ok(())
    }

    #[test]
    fn pieces_hold_what_was_put_and_outlive_the_arena() -> Result<()> {
        let mut arena = Arena::default();
        let first = arena.put(&[1f32, 2.0, 3.0])?;
        let large = arena.put(&vec![7i8; CHUNK + 1])?;
        let last = arena.put(&[half::bf16::ONE; 5])?;
        drop(arena);
        assert_eq!(&first[..], [1.0, 2.0, 3.0]);
        assert!(large.iter().all(|&value| value == 7) && large.len() == CHUNK + 1);
        assert_eq!(&last[..], [half::bf16::ONE; 5]);
        assert!([first.address, large.address, last.address].iter().all(|at| at % ALIGN == 0));
        Ok(())
    }
}
