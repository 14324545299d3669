//! The VM that tests of catalogue and commands look at.

use super::chain::{Chain, Storage};
use super::repo::Vm;
use super::rng::Rng;
use super::sparse::Fill;
use super::vhd_dir::Filter;

/// A chain of small differences.
pub fn chain(rng: &mut Rng, layers: u64, storage: Storage) -> Chain {
    let mut chain = Chain::new();
    for layer in 0..layers {
        let seed = rng.next_u64();
        chain
            .push(rng, (3 << 20) + 1536)
            .storage(storage)
            .write(17 * layer, 900, Fill::Random(seed))
            .write(5000 + layer, 100, Fill::Text(seed));
    }
    chain
}

/// Two disks and a memory image at three restore points.
pub fn web(rng: &mut Rng) -> Vm {
    let mut vm = Vm::new(rng, "web-01 \"α\" / prod");
    vm.uuid = "3f2a9c1e-1111-4222-8333-444455556666".to_owned();
    let disk = chain(rng, 3, Storage::File);
    vm.disk(rng, "root", disk);
    let disk = chain(rng, 3, Storage::Dir(Filter::Brotli));
    vm.disk(rng, "data", disk);
    let image = chain(rng, 1, Storage::File);
    vm.suspend_image(rng, image);
    vm
}

/// Its directory in the mount.
pub const WEB: &str = "web-01 \"α\" _ prod (3f2a9c1e)";
