package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// Pair is one sample of each.
type Pair struct {
	A float64 `json:"a"`
	B float64 `json:"b"`
}

func (p Pair) ratio() float64 { return p.A / p.B }

// Result is what an experiment gave, samples included.
type Result struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// A and B are medians, for a feeling of size; the claim is Ratio.
	A     Estimate `json:"a"`
	B     Estimate `json:"b"`
	Ratio Estimate `json:"ratio"`
	// Control is A ÷ A; nil when it was left out.
	Control *Estimate `json:"control,omitempty"`
	Limit   float64   `json:"limit,omitempty"`
	Pairs   []Pair    `json:"pairs"`
	// ControlPairs are the control's.
	ControlPairs []Pair    `json:"control_pairs,omitempty"`
	Started      time.Time `json:"started"`
	Seconds      float64   `json:"seconds"`
	Machine      string    `json:"machine"`
}

func newResult(part Part, pairs, control []Pair, start time.Time) Result {
	r := Result{
		Name: part.Name, Unit: part.Unit, Limit: part.Limit, Pairs: pairs, ControlPairs: control,
		A:       estimate(each(pairs, func(p Pair) float64 { return p.A })),
		B:       estimate(each(pairs, func(p Pair) float64 { return p.B })),
		Ratio:   estimate(each(pairs, Pair.ratio)),
		Started: start.UTC().Truncate(time.Second),
		Seconds: time.Since(start).Round(time.Millisecond).Seconds(),
		Machine: machine(),
	}
	if len(control) > 0 {
		c := estimate(each(control, Pair.ratio))
		r.Control = &c
	}
	return r
}

func each(pairs []Pair, of func(Pair) float64) []float64 {
	out := make([]float64, len(pairs))
	for i, p := range pairs {
		out[i] = of(p)
	}
	return out
}

func machine() string {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("unknown kernel")
	}
	return fmt.Sprintf("%d CPUs, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version())
}

// Met says whether the median keeps the limit. Without a limit it does.
func (r Result) Met() bool { return r.Limit == 0 || r.Ratio.Median <= r.Limit }

// Sure says that the whole interval is on the side of the limit where the median is.
func (r Result) Sure() bool {
	switch {
	case r.Limit == 0:
		return true
	case r.Met():
		return r.Ratio.Interval.High <= r.Limit
	default:
		return r.Ratio.Interval.Low > r.Limit
	}
}

// Quiet says that the control's interval has 1 in it: the machine did not take sides. It is
// true when there was no control.
func (r Result) Quiet() bool { return r.Control == nil || r.Control.Interval.Has(1) }

// Verdict says it in words.
func (r Result) Verdict() string {
	var words []string
	switch {
	case r.Limit == 0:
		words = append(words, "reported")
	case r.Met() && r.Sure():
		words = append(words, "met")
	case r.Met():
		words = append(words, "met, but the interval crosses the limit")
	case r.Sure():
		words = append(words, "MISSED")
	default:
		words = append(words, "MISSED, but the interval crosses the limit")
	}
	if !r.Quiet() {
		words = append(words, "control is not 1: measure again on a quiet machine")
	}
	return strings.Join(words, "; ")
}

// Markdown is a table of results.
func Markdown(results []Result) string {
	var b strings.Builder
	b.WriteString("| what | A | B | A ÷ B (95 %) | limit | control A ÷ A (95 %) | pairs | verdict |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		limit, control := "–", "–"
		if r.Limit > 0 {
			limit = fmt.Sprintf("≤ %.3g", r.Limit)
		}
		if r.Control != nil {
			control = r.Control.String()
		}
		fmt.Fprintf(&b, "| %s | %s | %s | **%s** | %s | %s | %d | %s |\n", strings.ReplaceAll(r.Name, "|", `\|`),
			show(r.A.Median, r.Unit), show(r.B.Median, r.Unit), r.Ratio, limit, control, len(r.Pairs), r.Verdict())
	}
	for _, line := range origins(results) {
		fmt.Fprintf(&b, "\n%s\n", line)
	}
	return b.String()
}

// origins says where and when, once per machine.
func origins(results []Result) []string {
	var out []string
	seen := map[string]bool{}
	for _, r := range results {
		if !seen[r.Machine] {
			seen[r.Machine] = true
			out = append(out, fmt.Sprintf("Measured %s on %s.", r.Started.Format("2006-01-02 15:04 MST"), r.Machine))
		}
	}
	return out
}

// String is "median (low–high)".
func (e Estimate) String() string {
	return fmt.Sprintf("%.3f (%.3f–%.3f)", e.Median, e.Interval.Low, e.Interval.High)
}

// show writes a value for people.
func show(v float64, unit string) string {
	switch {
	case unit == Seconds && v < 1:
		return fmt.Sprintf("%.3g ms", v*1e3)
	case unit == Bytes && v >= 1<<20:
		return fmt.Sprintf("%.4g MiB", v/(1<<20))
	case unit == Bytes && v >= 1<<10:
		return fmt.Sprintf("%.4g KiB", v/(1<<10))
	default:
		return strings.TrimSpace(fmt.Sprintf("%.4g %s", v, unit))
	}
}

// Save writes results to base.json, samples included, and as a table to base.md.
func Save(base string, results []Result) error {
	data, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("save results %s: %w", base, err)
	}
	if err := os.WriteFile(base+".json", append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("save results: %w", err)
	}
	if err := os.WriteFile(base+".md", []byte(Markdown(results)), 0o644); err != nil {
		return fmt.Errorf("save results: %w", err)
	}
	return nil
}
