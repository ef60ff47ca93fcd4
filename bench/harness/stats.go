package harness

import (
	"math"
	"math/rand/v2"
	"slices"
)

// The bootstrap: how often the pairs are drawn anew, and the seed.
const (
	resamples = 10_000
	seed      = 20_240_601
	tail      = 0.025
)

// Interval is where the median lies with 95 % confidence.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Has says whether v is inside.
func (i Interval) Has(v float64) bool { return i.Low <= v && v <= i.High }

// Estimate is a median with its interval.
type Estimate struct {
	Median   float64  `json:"median"`
	Interval Interval `json:"interval_95"`
}

// estimate gives the median of values and its interval by the percentile bootstrap.
func estimate(values []float64) Estimate {
	r := rand.New(rand.NewPCG(seed, uint64(len(values))))
	drawn := make([]float64, len(values))
	medians := make([]float64, resamples)
	for i := range medians {
		for j := range drawn {
			drawn[j] = values[r.IntN(len(values))]
		}
		medians[i] = median(drawn)
	}
	slices.Sort(medians)
	return Estimate{median(slices.Clone(values)), Interval{quantile(medians, tail), quantile(medians, 1-tail)}}
}

// Median of values, which keep their order; of none there is none (NaN).
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	return median(slices.Clone(values))
}

// median sorts values.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	if n%2 == 1 {
		return values[n/2]
	}
	return (values[n/2-1] + values[n/2]) / 2
}

// quantile of sorted values, by linear interpolation.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	if low+1 >= len(sorted) {
		return sorted[low]
	}
	f := at - float64(low)
	return sorted[low]*(1-f) + sorted[low+1]*f
}
