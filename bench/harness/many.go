package harness

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Part is one of several numbers that the same runs give.
type Part struct {
	Name, Unit string
	Limit      float64
}

// ManySample measures several numbers in one run, in the order of the parts.
type ManySample func(ctx context.Context) ([]float64, error)

// Many is an Experiment whose runs give several numbers: seconds of a pause, and the bytes that it
// wrote. Each part becomes a Result of its own.
type Many struct {
	Parts     []Part
	A, B      ManySample
	Pairs     int
	Warmup    int
	NoControl bool
	Progress  func(done, total int)
}

// RunMany measures as Run does.
func RunMany(ctx context.Context, m Many) ([]Result, error) {
	if len(m.Parts) == 0 || m.A == nil || m.B == nil || m.Pairs < 0 {
		return nil, errors.New("several numbers need parts, A and B, and no negative numbers")
	}
	r, err := runMany(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("measure %s: %w", m.Parts[0].Name, err)
	}
	return r, nil
}

// series are the pairs of each part.
type series [][]Pair

func (s series) add(pairs []Pair) {
	for i, p := range pairs {
		s[i] = append(s[i], p)
	}
}

func runMany(ctx context.Context, m Many) ([]Result, error) {
	if m.Pairs == 0 {
		m.Pairs = DefaultPairs
	}
	start := time.Now()
	if err := m.warm(ctx); err != nil {
		return nil, err
	}
	pairs, control := make(series, len(m.Parts)), make(series, len(m.Parts))
	for i := range m.Pairs {
		p, err := m.measure(ctx, m.A, m.B, i%2 == 1)
		if err != nil {
			return nil, fmt.Errorf("pair %d: %w", i+1, err)
		}
		pairs.add(p)
		if !m.NoControl {
			if p, err = m.measure(ctx, m.A, m.A, i%2 == 1); err != nil {
				return nil, fmt.Errorf("control pair %d: %w", i+1, err)
			}
			control.add(p)
		}
		if m.Progress != nil {
			m.Progress(i+1, m.Pairs)
		}
	}
	out := make([]Result, len(m.Parts))
	for i, part := range m.Parts {
		out[i] = newResult(part, pairs[i], control[i], start)
	}
	return out, nil
}

func (m Many) warm(ctx context.Context) error {
	n := m.Warmup
	if n == 0 {
		n = 1
	}
	for range n {
		if _, err := m.measure(ctx, m.A, m.B, false); err != nil {
			return fmt.Errorf("warm-up: %w", err)
		}
	}
	return nil
}

// measure takes one pair of each part; swapped, b comes first.
func (m Many) measure(ctx context.Context, a, b ManySample, swapped bool) ([]Pair, error) {
	pairs := make([]Pair, len(m.Parts))
	steps := []func() error{
		func() error { return m.take(ctx, "A", a, func(i int, v float64) { pairs[i].A = v }) },
		func() error { return m.take(ctx, "B", b, func(i int, v float64) { pairs[i].B = v }) },
	}
	if swapped {
		steps[0], steps[1] = steps[1], steps[0]
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return pairs, nil
}

func (m Many) take(ctx context.Context, name string, s ManySample, set func(i int, v float64)) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	values, err := s(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case len(values) != len(m.Parts):
		return fmt.Errorf("%s: %d numbers for %d parts", name, len(values), len(m.Parts))
	}
	for i, v := range values {
		if !(v > 0) { // NaN, too
			return fmt.Errorf("%s: %v is no measurement: it must be above zero", name, v)
		}
		set(i, v)
	}
	return nil
}

// several makes a sample of one number one of many.
func several(s Sample) ManySample {
	return func(ctx context.Context) ([]float64, error) {
		v, err := s(ctx)
		return []float64{v}, err
	}
}

// Halves makes A and B of runs that give both: whichever comes first in a pair runs, the other
// takes its half.
func Halves(run func(ctx context.Context) (a, b []float64, err error)) (a, b ManySample) {
	var waiting [2][]float64
	half := func(i int) ManySample {
		return func(ctx context.Context) ([]float64, error) {
			if mine := waiting[i]; mine != nil {
				waiting[i] = nil
				return mine, nil
			}
			a, b, err := run(ctx)
			if err != nil {
				return nil, err
			}
			both := [2][]float64{a, b}
			waiting[1-i] = both[1-i]
			return both[i], nil
		}
	}
	return half(0), half(1)
}
