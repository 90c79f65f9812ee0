//! Choosing a token from logits, with the randomness as an input.

/// Settings and noise of one draw.
pub struct Draw<'a> {
    /// 0 is greedy.
    pub temperature: f32,
    /// Candidates; 0 means as many as there are draws.
    pub top_k: usize,
    /// Exponential(1) draws in the order of the candidates; None is greedy.
    pub noise: Option<&'a [f32]>,
}

/// Sampling settings of all slots.
pub struct Sampling<'a> {
    pub temperature: &'a [f32],
    pub top_k: &'a [i64],
    /// `[rows, draws]`, and how many draws a row has.
    pub noise: Option<(&'a [f32], usize)>,
}

impl<'a> Sampling<'a> {
    /// The draw of a slot, with a row of noise.
    pub fn draw(&self, slot: usize, row: usize) -> Draw<'a> {
        Draw {
            temperature: self.temperature[slot],
            top_k: self.top_k[slot].max(0) as usize,
            noise: self.noise.map(|(noise, draws)| &noise[row * draws..(row + 1) * draws]),
        }
    }
}

/// Takes the candidate with the largest probability over its exponential draw, which is each
/// candidate with its own probability. Candidates are ordered by probability, equal ones by number.
pub fn sample(logits: &[f32], draw: &Draw) -> usize {
    let noise = match draw.noise {
        Some(noise) if draw.temperature > 0.0 && !noise.is_empty() => noise,
        _ => return first_of_largest(logits.iter().copied()),
    };
    let wide: Vec<f32> = logits.iter().map(|x| x / draw.temperature).collect();
    let most = wide.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = wide.iter().map(|x| (x - most).exp()).collect();
    let total: f32 = exps.iter().sum();
    let candidates = if draw.top_k == 0 { noise.len() } else { draw.top_k.min(noise.len()) };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let descending = |a: &usize, b: &usize| exps[*b].total_cmp(&exps[*a]).then(a.cmp(b));
    if candidates < order.len() {
        order.select_nth_unstable_by(candidates, descending);
        order.truncate(candidates);
    }
    order.sort_unstable_by(descending);
    let scores = order.iter().zip(noise).map(|(&token, noise)| exps[token] / total / noise);
    order[first_of_largest(scores)]
}

fn first_of_largest(values: impl Iterator<Item = f32>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_decides_among_the_candidates() {
        let logits = [0.0, 3.0, 2.0, 1.0];
        let drawn = |top_k, noise: &[f32]| {
            sample(&logits, &Draw { temperature: 1.0, top_k, noise: Some(noise) })
        };
        assert_eq!(drawn(2, &[1.0, 1.0]), 1);
        assert_eq!(drawn(2, &[1.0, 0.01]), 2);
        assert_eq!(drawn(1, &[1.0, 0.01]), 1);
        assert_eq!(drawn(0, &[1.0, 1.0, 1.0, 1e-6]), 0);
    }

    #[test]
    fn zero_temperature_takes_the_first_of_the_largest() {
        let draw = Draw { temperature: 0.0, top_k: 0, noise: Some(&[1.0, 1e-9]) };
        assert_eq!(sample(&[1.0, 2.0, 2.0], &draw), 1);
    }
}
