package harness

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// scripted records the order of calls and returns values with noise and drift.
type scripted struct {
	order strings.Builder
	r     *rand.Rand
	n     int
}

func (s *scripted) sample(name string, mean float64) Sample {
	return func(context.Context) (float64, error) {
		s.order.WriteString(name)
		s.n++
		drift := 1 + float64(s.n)/50 // the machine becomes slower and slower
		return mean * drift * (1 + 0.05*s.r.NormFloat64()), nil
	}
}

func TestOrderIsInterleaved(t *testing.T) {
	t.Parallel()
	s := &scripted{r: rand.New(rand.NewPCG(1, 1))}
	var told []int
	r, err := Run(t.Context(), Experiment{
		Name: "x", A: s.sample("A", 1), B: s.sample("B", 2), Pairs: 4, NoControl: true,
		Progress: func(done, total int) { told = append(told, done, total) },
	})
	require.NoError(t, err)
	require.Equal(t, "AB"+"AB"+"BA"+"AB"+"BA", s.order.String())
	require.Equal(t, []int{1, 4, 2, 4, 3, 4, 4, 4}, told)
	require.Len(t, r.Pairs, 4)
	require.Nil(t, r.Control)
	s.order.Reset()
	_, err = Run(t.Context(), Experiment{Name: "x", A: s.sample("A", 1), B: s.sample("B", 2), Pairs: 2, Warmup: -1})
	require.NoError(t, err)
	require.Equal(t, "AB"+"AA"+"BA"+"AA", s.order.String())
}

func TestRatioIsFoundThroughNoiseAndDrift(t *testing.T) {
	t.Parallel()
	s := &scripted{r: rand.New(rand.NewPCG(2, 2))}
	r, err := Run(t.Context(), Experiment{Name: "x", Unit: Seconds, A: s.sample("A", 0.3), B: s.sample("B", 1), Limit: 0.35})
	require.NoError(t, err)
	require.Len(t, r.Pairs, DefaultPairs)
	require.InDelta(t, 0.3, r.Ratio.Median, 0.015)
	require.True(t, r.Ratio.Interval.Has(0.3), "%v", r.Ratio)
	require.Less(t, r.Ratio.Interval.High-r.Ratio.Interval.Low, 0.05)
	require.True(t, r.Quiet(), "%v", r.Control)
	require.Equal(t, "met", r.Verdict())
}

func TestBiasedMachineIsTold(t *testing.T) {
	t.Parallel()
	r := newResult(Part{Name: "x", Limit: 2}, []Pair{{1, 1}}, []Pair{{2, 1}, {2, 1.1}}, time.Now())
	require.False(t, r.Quiet())
	require.Contains(t, r.Verdict(), "control is not 1")
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		low, median, high, limit float64
		want                     string
	}{
		{0.8, 0.9, 1.0, 0, "reported"},
		{0.8, 0.9, 1.0, 1.0, "met"},
		{0.8, 0.9, 1.1, 1.0, "met, but the interval crosses the limit"},
		{0.9, 1.1, 1.2, 1.0, "MISSED, but the interval crosses the limit"},
		{1.1, 1.2, 1.3, 1.0, "MISSED"},
	} {
		r := Result{Limit: c.limit, Ratio: Estimate{c.median, Interval{c.low, c.high}}}
		require.Equal(t, c.want, r.Verdict())
	}
}

func TestEstimateIsRepeatable(t *testing.T) {
	t.Parallel()
	values := []float64{3, 1, 2, 5, 4}
	a := estimate(values)
	require.Equal(t, a, estimate(values))
	require.Equal(t, []float64{3, 1, 2, 5, 4}, values, "the caller's order is kept")
	require.InDelta(t, 3, a.Median, 0)
	require.Equal(t, Estimate{7, Interval{7, 7}}, estimate([]float64{7}))
	require.InDelta(t, 2.5, median([]float64{4, 1, 2, 3}), 0)
	require.InDelta(t, 1.5, quantile([]float64{1, 2}, 0.5), 1e-12)
}

// The interval must hold the true median in about 95 of 100 runs.
func TestIntervalCoversTheTruth(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 3))
	held := 0
	const runs = 60
	for range runs {
		values := make([]float64, DefaultPairs)
		for i := range values {
			values[i] = math.Exp(r.NormFloat64() / 4) // median 1, skewed as times are
		}
		if estimate(values).Interval.Has(1) {
			held++
		}
	}
	require.GreaterOrEqual(t, held, runs*90/100)
	require.Less(t, held, runs)
}

func TestFailuresEndTheRun(t *testing.T) {
	t.Parallel()
	good := func(context.Context) (float64, error) { return 1, nil }
	give := func(v float64, err error) Sample { return func(context.Context) (float64, error) { return v, err } }
	broken := errors.New("broken")
	_, err := Run(t.Context(), Experiment{Name: "speed", A: good, B: give(0, broken)})
	require.ErrorIs(t, err, broken)
	require.EqualError(t, err, "measure speed: warm-up: B: broken")
	for _, v := range []float64{0, -1, math.NaN()} {
		_, err = Run(t.Context(), Experiment{Name: "x", A: give(v, nil), B: good, Warmup: -1})
		require.ErrorContains(t, err, "pair 1: A:")
	}
	_, err = Run(t.Context(), Experiment{Name: "x", A: good})
	require.Error(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Run(ctx, Experiment{Name: "x", A: good, B: good})
	require.ErrorIs(t, err, context.Canceled)
}

// Numbers of one run stay together, and each gets a result of its own.
func TestSeveralNumbersOfTheSameRuns(t *testing.T) {
	t.Parallel()
	n := 0.0
	give := func(scale float64) ManySample {
		return func(context.Context) ([]float64, error) {
			n++
			return []float64{n * scale, n}, nil
		}
	}
	r, err := RunMany(t.Context(), Many{
		Parts: []Part{{Name: "time", Unit: Seconds, Limit: 1}, {Name: "size", Unit: Bytes}},
		A:     give(1), B: give(10), Pairs: 2, Warmup: -1, NoControl: true,
	})
	require.NoError(t, err)
	require.Len(t, r, 2)
	require.Equal(t, []Pair{{1, 20}, {4, 30}}, r[0].Pairs)
	require.Equal(t, []Pair{{1, 2}, {4, 3}}, r[1].Pairs)
	require.Equal(t, "size", r[1].Name)
	require.InDelta(t, 1, r[0].Limit, 0)
	_, err = RunMany(t.Context(), Many{Parts: []Part{{Name: "time"}}, A: give(1), B: give(1), Warmup: -1})
	require.ErrorContains(t, err, "2 numbers for 1 parts")
	_, err = RunMany(t.Context(), Many{A: give(1), B: give(1)})
	require.Error(t, err)
}

func TestHalvesOfOneRun(t *testing.T) {
	t.Parallel()
	runs := 0.0
	a, b := Halves(func(context.Context) ([]float64, []float64, error) {
		runs++
		return []float64{runs}, []float64{10 * runs}, nil
	})
	r, err := RunMany(t.Context(), Many{Parts: []Part{{Name: "x"}}, A: a, B: b, Pairs: 3, Warmup: -1, NoControl: true})
	require.NoError(t, err)
	require.Equal(t, []Pair{{1, 10}, {2, 20}, {3, 30}}, r[0].Pairs)
	require.InDelta(t, 3, runs, 0)
	broken := errors.New("broken")
	a, _ = Halves(func(context.Context) ([]float64, []float64, error) { return nil, nil, broken })
	_, err = a(t.Context())
	require.ErrorIs(t, err, broken)
}

func TestMedian(t *testing.T) {
	t.Parallel()
	values := []float64{3, 1, 2}
	require.InDelta(t, 2, Median(values), 0)
	require.Equal(t, []float64{3, 1, 2}, values)
	require.True(t, math.IsNaN(Median(nil)))
}

func TestSamplesOfTime(t *testing.T) {
	t.Parallel()
	v, err := Timed(func(context.Context) error { time.Sleep(2 * time.Millisecond); return nil })(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, v, 0.002)
	v, err = Duration(func(context.Context) (time.Duration, error) { return 5 * time.Millisecond, nil })(t.Context())
	require.NoError(t, err)
	require.InDelta(t, 0.005, v, 1e-12)
}

func TestSaved(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "create")
	pairs := []Pair{{0.1, 1}, {0.1, 1}}
	r := newResult(Part{Name: "a|b", Unit: Seconds, Limit: 0.12}, pairs, pairs[:1], time.Now())
	big := newResult(Part{Name: "bytes", Unit: Bytes}, []Pair{{3 << 20, 2048}}, nil, time.Now())
	require.NoError(t, Save(base, []Result{r, big}))
	data, err := os.ReadFile(base + ".json")
	require.NoError(t, err)
	var back []Result
	require.NoError(t, json.Unmarshal(data, &back))
	require.Equal(t, []Result{r, big}, back)
	text, err := os.ReadFile(base + ".md")
	require.NoError(t, err)
	require.Contains(t, string(text), `| a\|b | 100 ms | 1 s | **0.100 (0.100–0.100)** | ≤ 0.12 | 0.100 (0.100–0.100) | 2 | met; control is not 1`)
	require.Contains(t, string(text), "| bytes | 3 MiB | 2 KiB | **1536.000 (1536.000–1536.000)** | – | – | 1 | reported |")
	require.Contains(t, string(text), "CPUs, Linux")
	require.Error(t, Save(filepath.Join(base, "no", "folder"), nil))
}
