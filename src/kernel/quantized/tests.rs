use super::*;
use crate::kernel::Isa;
use crate::kernel::testing::{near, numbers, same_everywhere};

/// The types that are quantized.
fn types() -> impl Iterator<Item = BlockType> {
    BlockType::all().filter(|ty| ty.is_quantized())
}

/// `n` columns of `k` numbers, as blocks and as the numbers that these stand for.
fn columns(ty: BlockType, name: &str, n: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    let bytes = ty.encode(&numbers(name, n * k, 0.7)).unwrap();
    let mut all = vec![0.0; n * k];
    ty.decode(&bytes, &mut all);
    (bytes, all)
}

fn matrix(ty: BlockType, n: usize, k: usize, bytes: &[u8]) -> Matrix {
    let mut matrix = Matrix::new(k, n);
    matrix.set(0..n, ty, bytes, |i| i);
    matrix
}

/// `start + Σ x·w` with x rounded and summed as the module says, in scalars: element (i, j) of `[m, n]`.
fn plain(ty: BlockType, bytes: &[u8], k: usize, x: &[f32], start: f32, j: usize) -> f32 {
    let mut block = Block::default();
    let (len, group, form) = (ty.block_len(), ty.group_len(), Form::of(ty));
    let column = &bytes[ty.bytes(k) * j..ty.bytes(k) * (j + 1)];
    let (mut sums, mut mins) = ([0.0_f32; 8], 0.0_f32);
    for (x, bytes) in x.chunks_exact(len).zip(column.chunks_exact(ty.bytes(len))) {
        ty.unpack(bytes, &mut block);
        let max = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        let inverse = if max > 1e-30 { 127.0 / max } else { 0.0 };
        let x: Vec<i32> = x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect();
        let scale = match len {
            256 if inverse > 0.0 => 1.0 / inverse,
            256 => 0.0,
            _ => half::f16::from_f32(max / 127.0).to_f32(),
        };
        let product = |i: usize| i32::from(block.scales[i / group]) * i32::from(block.codes[i]) * x[i];
        match form.sums {
            form::Sums::Quads => {
                for (q, sum) in sums.iter_mut().enumerate() {
                    let dot: i32 = (4 * q..4 * q + 4).map(product).sum();
                    *sum = (dot as f32).mul_add(block.scale * scale, *sum);
                }
            }
            form::Sums::Groups | form::Sums::Blocks => {
                let dot: i32 = (0..len).map(product).sum();
                sums[0] = (dot as f32).mul_add(block.scale * scale, sums[0]);
            }
        }
        let dot: i32 = (0..len).map(|i| i32::from(block.mins[i / group]) * x[i]).sum();
        match form.sums {
            form::Sums::Groups if form.mins => sums[0] = block.min.mul_add(scale * dot as f32, sums[0]),
            form::Sums::Blocks if form.mins => mins = (dot as f32).mul_add(block.min * scale, mins),
            _ => {}
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    let tree = ((a + e) + (c + g)) + ((b + f) + (d + h));
    tree + mins + start
}

/// Numbers of very different sizes, a group of zeros and one whose max is tiny.
fn input(m: usize, k: usize) -> Vec<f32> {
    let mut x = numbers("x", m * k, 1.0);
    x.iter_mut().enumerate().for_each(|(i, x)| *x *= [1.0, 1e-3, 30.0][i / 32 % 3]);
    x[..32].fill(0.0);
    x[k - 32..k].fill(1e-35);
    x
}

/// Bit for bit, for all types, on all instructions: few and many rows, columns that are no whole panels, rows
/// with gaps, each start.
#[test]
fn products_are_those_of_scalars_bit_for_bit() {
    for ty in types() {
        for (m, n, k) in [(1, 16, 256), (1, 150, 512), (3, 37, 256), (7, 100, 256), (70, 21, 256)] {
            let (bytes, _) = columns(ty, "w", n, k);
            let matrix = matrix(ty, n, k, &bytes);
            let (x, bias, stride) = (input(m, k), numbers("bias", n, 1.0), n + 3);
            let before = numbers("y", m * stride, 1.0);
            for start in [Start::Zero, Start::Bias(&bias), Start::Add] {
                let found = same_everywhere(|team| {
                    let mut y = before.clone();
                    Columns::all(&matrix, &[]).product(team, m, View::new(&x, k), start, &mut y, stride);
                    vec![y]
                });
                for (i, (y, before)) in found[0].chunks(stride).zip(before.chunks(stride)).enumerate() {
                    for j in 0..n {
                        let start = match start {
                            Start::Zero => 0.0,
                            Start::Bias(bias) => bias[j],
                            Start::Add => before[j],
                        };
                        let expected = plain(ty, &bytes, k, &x[i * k..(i + 1) * k], start, j);
                        assert_eq!(y[j].to_bits(), expected.to_bits(), "{ty:?} {m} {n} {k}: {i}, {j}");
                    }
                    assert_eq!(y[n..], before[n..], "what is between rows stays");
                }
            }
        }
    }
}

/// Also where the CPU has faster ones, which [`same_everywhere`] would take.
#[test]
fn all_instructions_give_the_same_bits() {
    let isas = Isa::available();
    let all = isas.iter().flat_map(|isa| [Instructions::of(*isa), Instructions::Plain(*isa)]);
    let all: Vec<Instructions> = all.collect();
    let (m, n, k) = (5, 50, 256);
    for ty in types() {
        let (bytes, _) = columns(ty, "w", n, k);
        let matrix = matrix(ty, n, k, &bytes);
        let (team, x) = (Team::new(1), input(m, k));
        let of = |with: Instructions| {
            let mut y = vec![0.0; m * n];
            Rows::with(&team, m, k, Sharing::beside(ty), |rows| {
                rows.round(team.isa, View::new(&x, k), 0..m);
                let part = &matrix.parts[0];
                let panels = Panels { form: part.form, data: &part.data, columns: n };
                let to = tile::Output { y: Parts::new(&mut y), stride: n };
                multiply(with, panels, rows, 0..m, Start::Zero, to);
            });
            y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let expected = of(all[0]);
        all.iter().for_each(|with| assert!(of(*with) == expected, "{ty:?} by {with:?}"));
    }
}

/// The largest codes, scales and mins that blocks can hold, and x of ±127: what 16 bits could not add up, nor f32
/// exactly.
#[test]
fn the_largest_codes_do_not_overflow() {
    let (n, k) = (17, 512);
    for ty in types() {
        let [low, high] = if ty == BlockType::Q8_0 { [-128, 127] } else { ty.codes() };
        let scales = if ty == BlockType::Q6K { [-128, 127] } else { [ty.scales(); 2] };
        let mins = if ty.block_len() == 256 { 63 } else { 1 };
        for (code, scale) in [low, high].into_iter().flat_map(|code| scales.map(|scale| (code, scale))) {
            let block =
                Block { scale: 0.5, min: 0.25, scales: [scale; 16], mins: [mins; 16], codes: [code; 256] };
            let mut column = Vec::new();
            (0..k / ty.block_len()).for_each(|_| ty.pack(&block, &mut column));
            let bytes = column.repeat(n);
            let matrix = matrix(ty, n, k, &bytes);
            for sign in [1.0, -1.0] {
                let x = vec![127.0 / 64.0 * sign; k];
                let found = same_everywhere(|team| {
                    let mut y = vec![0.0; n];
                    Columns::all(&matrix, &[]).product(team, 1, View::new(&x, k), Start::Zero, &mut y, n);
                    vec![y]
                });
                let expected = plain(ty, &bytes, k, &x, 0.0, 0);
                assert_eq!(found[0], [expected; 17], "{ty:?} {code} {scale} {sign}");
                let mut numbers = vec![0.0; k];
                matrix.column(n - 1, &mut numbers);
                // The scale of 127 / 64 / 127 is exact.
                let exact = f64::from(numbers[0]) * 127.0 / 64.0 * f64::from(sign) * k as f64;
                near("y", &found[0], &[exact; 17], 1e-6);
            }
        }
    }
}

/// Each type's panels give back the numbers that blocks stand for.
#[test]
fn panels_hold_the_numbers_of_blocks() {
    let (n, k) = (19, 512);
    for ty in types() {
        let (bytes, all) = columns(ty, "w", n, k);
        let matrix = matrix(ty, n, k, &bytes);
        let mut numbers = vec![0.0; k];
        for (j, expected) in all.chunks(k).enumerate() {
            matrix.column(j, &mut numbers);
            assert_eq!(numbers, expected, "{ty:?} {j}");
        }
    }
}

/// Rounding x costs less than a percent of the size of the products.
#[test]
fn products_are_near_those_of_f32() {
    let (m, n, k) = (3, 40, 512);
    let x = numbers("x", m * k, 1.0);
    for ty in types() {
        let (bytes, w) = columns(ty, "w", n, k);
        let matrix = matrix(ty, n, k, &bytes);
        let mut y = vec![0.0; m * n];
        let all = Columns::all(&matrix, &[]);
        all.product(&Team::new(1), m, View::new(&x, k), Start::Zero, &mut y, n);
        let exact = |i: usize, j: usize| -> f64 {
            (0..k).map(|t| f64::from(x[i * k + t]) * f64::from(w[j * k + t])).sum()
        };
        let off: f64 = (0..m * n).map(|at| (exact(at / n, at % n) - f64::from(y[at])).powi(2)).sum();
        let size: f64 = (0..m * n).map(|at| exact(at / n, at % n).powi(2)).sum();
        assert!((off / size).sqrt() < 0.01, "{ty:?}: {}", (off / size).sqrt());
    }
}

/// Columns in another order, parts of several types, f32 between them.
#[test]
fn parts_are_laid_side_by_side() {
    let (m, k, n) = (2, 256, 90);
    let parts = [(0..20, BlockType::Q4K), (20..43, BlockType::Q8_0), (60..90, BlockType::Q6K)];
    let (mut matrix, mut w) = (Matrix::new(k, n), vec![0.0; k * n]);
    let turned = |range: &Range<usize>, i: usize| range.end - 1 - i;
    for (range, ty) in &parts {
        let (bytes, own) = columns(*ty, ty.name(), range.len(), k);
        matrix.set(range.clone(), *ty, &bytes, |i| turned(range, i));
        for (i, column) in own.chunks(k).enumerate() {
            (0..k).for_each(|t| w[t * n + turned(range, i)] = column[t]);
        }
    }
    assert!(!matrix.is_whole() && matrix.columns().count() == 73);
    let mut column = vec![0.0; k];
    for j in matrix.columns() {
        matrix.column(j, &mut column);
        assert!((0..k).all(|t| column[t] == w[t * n + j]), "column {j}");
    }
    let plain_columns = numbers("plain", k * n, 0.7);
    (0..k).for_each(|t| w[t * n + 43..t * n + 60].copy_from_slice(&plain_columns[t * n + 43..t * n + 60]));
    let (x, bias) = (numbers("x", m * k, 1.0), numbers("bias", n, 1.0));
    let found = same_everywhere(|team| {
        let mut y = vec![0.0; m * n];
        let all = Columns::all(&matrix, &plain_columns);
        all.product(team, m, View::new(&x, k), Start::Bias(&bias), &mut y, n);
        vec![y]
    });
    let expected: Vec<f64> = (0..m * n)
        .map(|at| {
            let (i, j) = (at / n, at % n);
            let sum: f64 = (0..k).map(|t| f64::from(x[i * k + t]) * f64::from(w[t * n + j])).sum();
            sum + f64::from(bias[j])
        })
        .collect();
    let off = found[0].iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(off < 0.6, "{off}");
    matrix.clear(20..43);
    assert_eq!(matrix.plain().collect::<Vec<_>>(), [20..60]);
}

/// A block of the vocabulary gives what the whole gives.
#[test]
fn some_panels_give_the_same_bits_as_all() {
    let (m, n, k) = (3, 150, 64);
    let (bytes, _) = columns(BlockType::Q5_1, "w", n, k);
    let matrix = matrix(BlockType::Q5_1, n, k, &bytes);
    let (x, team) = (numbers("x", m * k, 1.0), Team::new(2));
    let all = Columns::all(&matrix, &[]);
    let mut whole = vec![0.0; m * n];
    all.product(&team, m, View::new(&x, k), Start::Zero, &mut whole, n);
    for columns in [0..64, 64..128, 128..150] {
        let mut part = vec![0.0; m * columns.len()];
        all.part(columns.clone()).product(&team, m, View::new(&x, k), Start::Zero, &mut part, columns.len());
        for i in 0..m {
            let part = &part[i * columns.len()..(i + 1) * columns.len()];
            assert_eq!(part, &whole[i * n + columns.start..i * n + columns.end]);
        }
    }
}

#[test]
fn what_is_no_number_makes_no_numbers() {
    let (n, k) = (20, 64);
    let (bytes, _) = columns(BlockType::Q4_0, "w", n, k);
    let matrix = matrix(BlockType::Q4_0, n, k, &bytes);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![1.0; k];
        x[40] = bad;
        for isa in Isa::available() {
            let mut y = vec![0.0; n];
            let team = Team::with(1, isa);
            Columns::all(&matrix, &[]).product(&team, 1, View::new(&x, k), Start::Zero, &mut y, n);
            assert!(y.iter().all(|y| y.is_nan()), "{bad} by {}", isa.name());
        }
    }
}
