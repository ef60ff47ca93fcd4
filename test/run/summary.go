package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// record is what came of a test, or, under the name "", of a package that failed with no test to
// blame (build, panic, TestMain).
type record struct {
	Package, Test string
	// Status is pass, fail or skip; or parent: it has subtests, which are counted instead.
	Status string
	Reason string `json:",omitempty"` // why it was skipped
}

// records are of tests, those with subtests failed only when they failed by themselves.
func (p *pkg) records() []record {
	var out []record
	failed := false
	for _, name := range slices.Sorted(maps.Keys(p.tests)) {
		t := p.tests[name]
		one := record{Package: p.name, Test: name, Status: t.status}
		switch {
		case name == "":
			continue
		case t.parent && (t.status != "fail" || p.childFailed(name)):
			one.Status = "parent"
		case t.status == "skip":
			one.Reason = t.reason()
		case t.status == "" && p.status == "":
			continue // it still runs
		case t.status != "pass":
			one.Status = "fail"
		}
		failed = failed || one.Status == "fail"
		out = append(out, one)
	}
	if p.status == "fail" && !failed {
		out = append(out, record{Package: p.name, Status: "fail"})
	}
	return out
}

func (p *pkg) childFailed(parent string) bool {
	for name, t := range p.tests {
		if strings.HasPrefix(name, parent+"/") && t.status != "pass" && t.status != "skip" {
			return true
		}
	}
	return false
}

type counts struct{ passed, failed, skipped int }

func tally(list []record) counts {
	var c counts
	for _, one := range list {
		switch one.Status {
		case "pass":
			c.passed++
		case "fail":
			c.failed++
		case "skip":
			c.skipped++
		}
	}
	return c
}

func (p *pkg) count() counts { return tally(p.records()) }

// verdict prints the summary, or adds to one; its error is nil only when all is well. ended is
// how go test did.
func (r *report) verdict(ended error, add string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.finish()
	r.listSeconds()
	c := tally(list)
	if add == "" {
		closing(r.w, list)
	} else {
		fmt.Fprintf(r.w, "\nthis run: passed %d, failed %d, skipped %d\n", c.passed, c.failed, c.skipped)
		ended = errors.Join(ended, appendRecords(add, list))
	}
	switch {
	case c.failed > 0:
		return errors.New("tests failed")
	case ended != nil:
		return fmt.Errorf("go test: %w", ended)
	case c.passed+c.skipped == 0:
		return errors.New("no test ran")
	}
	return nil
}

// finish ends what go test did not, and gives all records.
func (r *report) finish() []record {
	var out []record
	for _, name := range slices.Sorted(maps.Keys(r.pkgs)) {
		p := r.pkgs[name]
		if p.status == "" {
			p.status = "fail" // go test died before it could say so
			fmt.Fprintf(r.w, "FAIL %s: it did not end\n", short(p.name))
			r.explain(p, "")
		}
		out = append(out, p.records()...)
	}
	return out
}

// closing lists what was skipped and prints the last line.
func closing(w io.Writer, list []record) {
	head := "\nskipped:\n"
	for _, one := range list {
		if one.Status == "skip" {
			fmt.Fprintf(w, "%s  %s %s: %s\n", head, short(one.Package), one.Test, one.Reason)
			head = ""
		}
	}
	c := tally(list)
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", c.passed, c.failed, c.skipped)
}

// reason is what the test said, without the place where it said it.
func (t *result) reason() string {
	var out []string
	for line := range strings.Lines(strings.Join(t.output, "")) {
		if chatter(line) {
			continue
		}
		line = strings.TrimSpace(line)
		if place, text, ok := strings.Cut(line, ": "); ok && strings.Contains(place, ".go:") {
			line = text
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return "NO REASON GIVEN"
	}
	return strings.Join(out, " ")
}

// listSeconds names packages with tests, the slowest first.
func (r *report) listSeconds() {
	var list []*pkg
	for _, p := range r.pkgs {
		if p.count() != (counts{}) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *pkg) int {
		return cmp.Or(cmp.Compare(b.seconds, a.seconds), cmp.Compare(a.name, b.name))
	})
	if len(list) > 0 {
		fmt.Fprint(r.w, "\nseconds per package:\n")
	}
	for _, p := range list {
		note := ""
		if p.cached {
			note = " (cached)"
		}
		fmt.Fprintf(r.w, "%8.1f  %s%s\n", p.seconds, short(p.name), note)
	}
}
