package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// line is a row for who waits.
func (r row) line() string {
	text := fmt.Sprintf("%s, %s: n %s, %d failures, %.0f s", r.Scenario, r.Runtime, r.trials(), r.Failures, r.Seconds)
	return text + r.figures(", ") + r.reason(", ")
}

// trials is n, and how many there should have been when there was no time for all.
func (r row) trials() string {
	if r.N == r.Wanted {
		return fmt.Sprint(r.N)
	}
	return fmt.Sprintf("%d of %d", r.N, r.Wanted)
}

func (r row) figures(before string) string {
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r.Figures)) {
		fmt.Fprintf(&out, "%s%s %s", before, name, r.Figures[name])
	}
	return out.String()
}

func (r row) reason(before string) string {
	if r.ended == "" {
		return ""
	}
	return before + r.ended
}

// report prints the table; its error is nil when nothing failed.
func report(o options, rows []row, interrupted error) error {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SCENARIO\tRUNTIME\tN\tFAILURES\tSEED\tSECONDS\tFIGURES")
	failed := 0
	for _, r := range rows {
		failed += r.Failures
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%.0f\t%s\n", r.Scenario, r.Runtime, r.trials(), r.Failures, r.Seed, r.Seconds, strings.TrimPrefix(r.figures("; ")+r.reason("; "), "; "))
	}
	_ = w.Flush()
	remains, _ := filepath.Glob(filepath.Join(o.out, "roost-e2e-*"))
	for _, dir := range remains {
		fmt.Println("what is left of an installation in which something failed:", dir)
	}
	fmt.Printf("logs: %s; again with: go run ./test/soak -seed %d -scale %g\n", o.out, o.seed, o.scale)
	err := errors.Join(interrupted, markdown(o, rows))
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d failures", failed))
	}
	return err
}

// markdown writes the table as docs/reliability.md has it.
func markdown(o options, rows []row) error {
	if o.markdown == "" {
		return nil
	}
	var out strings.Builder
	out.WriteString("| scenario | runtime | n | failures | seconds | |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&out, "| %s | %s | %s | %d | %.0f | %s |\n", r.Scenario, r.Runtime, r.trials(), r.Failures, r.Seconds, strings.TrimPrefix(r.figures("; ")+r.reason("; "), "; "))
	}
	return os.WriteFile(o.markdown, []byte(out.String()), 0o600)
}
