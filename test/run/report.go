package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// event is one line of go test -json (go doc test2json, go help buildjson).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// result is what is known of one test, or, under the name "", of a package itself.
type result struct {
	output  []string
	parent  bool
	status  string
	elapsed float64
}

type pkg struct {
	name    string
	tests   map[string]*result
	status  string
	seconds float64
	started time.Time
	cached  bool
}

// report reads events and tells a person what they mean.
type report struct {
	mu     sync.Mutex
	w      io.Writer
	pkgs   map[string]*pkg
	builds map[string][]string
	done   int
	stop   chan struct{}
	idle   sync.WaitGroup
}

// heartbeat is how often packages that take long are named.
const heartbeat = 30 * time.Second

func newReport(w io.Writer) *report {
	r := &report{w: w, pkgs: map[string]*pkg{}, builds: map[string][]string{}, stop: make(chan struct{})}
	r.idle.Go(r.beat)
	return r
}

func (r *report) close() {
	close(r.stop)
	r.idle.Wait()
}

func (r *report) beat() {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-tick.C:
			r.mu.Lock()
			r.nameRunning()
			r.mu.Unlock()
		}
	}
}

func (r *report) nameRunning() {
	for _, name := range slices.Sorted(maps.Keys(r.pkgs)) {
		p := r.pkgs[name]
		if p.status == "" && !p.started.IsZero() {
			fmt.Fprintf(r.w, "…    %s, %.0f s: %s\n", short(name), time.Since(p.started).Seconds(), strings.Join(p.unfinished(), " "))
		}
	}
}

// unfinished names the innermost tests that began and did not end.
func (p *pkg) unfinished() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p.tests)) {
		if t := p.tests[name]; name != "" && t.status == "" && !t.parent {
			out = append(out, name)
		}
	}
	return out
}

// read takes events until the stream ends. What is no event is shown as it is.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read go test's output: %w", err)
		}
	}
}

func (r *report) line(line []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e event
	if json.Unmarshal(line, &e) != nil || e.Action == "" {
		fmt.Fprintf(r.w, "%s\n", bytes.TrimRight(line, "\n"))
		return
	}
	if e.Action == "build-output" {
		r.builds[e.ImportPath] = append(r.builds[e.ImportPath], e.Output)
	}
	if e.Package == "" {
		return
	}
	p := r.pkg(e.Package)
	t := p.test(e.Test)
	switch e.Action {
	case "start":
		p.started = time.Now()
	case "output":
		t.output = append(t.output, e.Output)
		p.cached = p.cached || (e.Test == "" && strings.Contains(e.Output, "\t(cached)"))
	case "pass", "fail", "skip":
		t.status, t.elapsed = e.Action, e.Elapsed
		if e.Test == "" {
			r.end(p, e)
		}
	}
}

func (r *report) pkg(name string) *pkg {
	if r.pkgs[name] == nil {
		r.pkgs[name] = &pkg{name: name, tests: map[string]*result{}}
	}
	return r.pkgs[name]
}

// test finds or makes the record of a test and marks those that it is a subtest of.
func (p *pkg) test(name string) *result {
	if t := p.tests[name]; t != nil {
		return t
	}
	for i, c := range name {
		if parent := p.tests[name[:i]]; c == '/' && parent != nil {
			parent.parent = true
		}
	}
	p.tests[name] = &result{}
	return p.tests[name]
}

// end tells how a package ended.
func (r *report) end(p *pkg, e event) {
	r.done++
	p.status, p.seconds = e.Action, e.Elapsed
	c := p.count()
	switch {
	case e.Action == "fail":
		fmt.Fprintf(r.w, "FAIL %s, %.1f s\n", short(p.name), p.seconds)
		r.explain(p, e.FailedBuild)
	case c == counts{}:
		// No tests: not worth a line.
	default:
		note := ""
		if c.skipped > 0 {
			note = fmt.Sprintf(", %d skipped", c.skipped)
		}
		if p.cached {
			note += ", cached"
		}
		fmt.Fprintf(r.w, "ok   %s, %.1f s, %d passed%s\n", short(p.name), p.seconds, c.passed, note)
	}
}

// explain shows the output of what failed: a build, tests, or the package itself.
func (r *report) explain(p *pkg, build string) {
	if build != "" {
		r.indent(r.builds[build])
		return
	}
	for _, name := range slices.Sorted(maps.Keys(p.tests)) {
		t := p.tests[name]
		if name == "" {
			continue
		}
		if t.status == "fail" {
			fmt.Fprintf(r.w, "  FAIL %s, %.2f s\n", name, t.elapsed)
			r.indent(t.output)
		}
		if t.status == "" && !t.parent {
			fmt.Fprintf(r.w, "  DID NOT END %s\n", name)
			r.indent(t.output)
		}
	}
	r.indent(p.test("").output)
}

func (r *report) indent(output []string) {
	for line := range strings.Lines(strings.Join(output, "")) {
		if !chatter(line) {
			fmt.Fprintf(r.w, "      %s\n", strings.TrimRight(line, "\n"))
		}
	}
}

// chatter are the lines that go test frames the output with.
func chatter(line string) bool {
	line = strings.TrimSpace(line)
	for _, p := range []string{"=== RUN", "=== PAUSE", "=== CONT", "=== NAME", "--- FAIL", "--- SKIP", "--- PASS"} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return line == "" || line == "PASS" || line == "FAIL" || strings.HasPrefix(line, "FAIL\t") || strings.HasPrefix(line, "exit status ")
}

// short leaves the module's name out.
func short(name string) string {
	return strings.TrimPrefix(name, "github.com/roosthq/roost/")
}
