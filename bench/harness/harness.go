// Package harness measures ratios honestly: how A compares with B on a machine that is shared,
// warms up and drifts.
//
// A and B are measured in pairs within one run, in the order AB BA AB BA …, so that what
// changes slowly hits both alike. Beside each pair A is measured against itself the same way (the
// control): its ratio must be 1 within its interval, or the run says more about the machine
// than about A and B. Shown is the median of the per-pair ratios A ÷ B with a bootstrap
// interval of 95 %; the seed is fixed, so equal samples give equal numbers.
//
// # Example
//
//	r, err := harness.Run(ctx, harness.Experiment{
//		Name: "create from template ÷ cold boot", Unit: harness.Seconds,
//		A: harness.Timed(restoreOne), B: harness.Timed(bootOne), Limit: 0.12,
//	})
//	err = harness.Save("bench/results/create", []harness.Result{r})   // .json and .md
package harness

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DefaultPairs is how many pairs are measured unless an experiment says otherwise.
const DefaultPairs = 30

// Units of samples.
const (
	Seconds = "s"
	Bytes   = "B"
)

// Sample measures once and returns a number above zero, in the experiment's unit. What it has to
// prepare and clean up is not part of the number.
type Sample func(ctx context.Context) (float64, error)

// Experiment compares A with B.
type Experiment struct {
	Name string
	Unit string
	A, B Sample
	// Pairs to measure; 0: DefaultPairs.
	Pairs int
	// Warmup is how many times each is run first, unmeasured; 0: once, negative: never.
	Warmup int
	// Limit is the highest ratio that meets the goal; 0: no goal, the ratio is reported.
	Limit float64
	// NoControl leaves out the control, for samples that cannot vary (bytes of a fixed input).
	NoControl bool
	// Progress, if set, is told after each pair.
	Progress func(done, total int)
}

// Timed makes a Sample of how long f takes.
func Timed(f func(ctx context.Context) error) Sample {
	return func(ctx context.Context) (float64, error) {
		start := time.Now()
		err := f(ctx)
		return time.Since(start).Seconds(), err
	}
}

// Duration makes a Sample of a function that measures time by itself.
func Duration(f func(ctx context.Context) (time.Duration, error)) Sample {
	return func(ctx context.Context) (float64, error) {
		d, err := f(ctx)
		return d.Seconds(), err
	}
}

// Run measures an experiment. It ends with the first sample that fails: a run with holes in it
// would favour whoever fails when it is slow.
func Run(ctx context.Context, e Experiment) (Result, error) {
	r, err := run(ctx, e)
	if err != nil {
		return Result{}, fmt.Errorf("measure %s: %w", e.Name, err)
	}
	return r, nil
}

func run(ctx context.Context, e Experiment) (Result, error) {
	if e.A == nil || e.B == nil || e.Name == "" || e.Pairs < 0 || e.Limit < 0 {
		return Result{}, errors.New("an experiment needs a name, A and B, and no negative numbers")
	}
	r, err := runMany(ctx, Many{
		Parts: []Part{{Name: e.Name, Unit: e.Unit, Limit: e.Limit}}, A: several(e.A), B: several(e.B),
		Pairs: e.Pairs, Warmup: e.Warmup, NoControl: e.NoControl, Progress: e.Progress,
	})
	if err != nil {
		return Result{}, err
	}
	return r[0], nil
}
