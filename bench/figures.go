package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/roosthq/roost/bench/harness"
)

// figure is a named claim and how it is measured.
type figure struct {
	Name    string
	measure measure
}

// figures of first light, on QEMU, then those of gVisor.
func figures(all *servers) []figure {
	qemu := func(name string, f func(s *server) measure) figure { return figure{name, all.with(onQEMU, f)} }
	first := []figure{
		qemu(pair("create from template to first exec ÷ cold boot to first exec", 0.12, warmExec, coldExec)),
		qemu("create to guest ready ÷ the same QEMU restore by a bare script", func(s *server) measure { return s.againstBareRestore }),
		qemu("bytes written by pause ÷ non-zero private pages × 4096", func(s *server) measure { return s.pauseBytes }),
		qemu("tenth pause of an idle sandbox ÷ first after writing 100 MB, bytes", func(s *server) measure { return s.tenthPause }),
		qemu("pause of an idle 512 MB sandbox ÷ QEMU's save of its RAM, both fsynced", func(s *server) measure { return s.againstFullSave }),
		qemu(pair("resume to first exec ÷ create to first exec", 1.3, resumeExec, warmExec)),
		qemu("private memory of the 20th sandbox ÷ the first", func(s *server) measure { return s.memoryOf20 }),
		qemu("exec of true, warm connection ÷ the guest's own fork and exec", func(s *server) measure { return s.execTrue("") }),
	}
	return append(append(first, gvisorFigures(all)...), figure{"uffd: the page server ÷ a loop that only copies", uffdHandler})
}

// sampleOn is a sample on an installation.
type sampleOn func(s *server) harness.Sample

func warmExec(s *server) harness.Sample   { return s.createExec(false) }
func coldExec(s *server) harness.Sample   { return s.createExec(true) }
func resumeExec(s *server) harness.Sample { return s.resumeExec }

// pair is a figure that is one experiment in seconds.
func pair(name string, limit float64, a, b sampleOn) (string, func(s *server) measure) {
	return name, func(s *server) measure { return compare(name, limit, a(s), b(s)) }
}

func compare(name string, limit float64, a, b harness.Sample) measure {
	return func(ctx context.Context, pairs int) ([]harness.Result, error) {
		r, err := harness.Run(ctx, harness.Experiment{
			Name: name, Unit: harness.Seconds, A: a, B: b, Pairs: pairs, Limit: limit, Progress: progress,
		})
		return []harness.Result{r}, err
	}
}

func progress(done, total int) {
	fmt.Fprintf(os.Stderr, "\r  %d/%d", done, total)
	if done == total {
		fmt.Fprintln(os.Stderr)
	}
}

// createExec is the time from asking for a sandbox to the output of its first command.
func (s *server) createExec(cold bool) harness.Sample {
	return func(ctx context.Context) (float64, error) {
		began := time.Now()
		id, err := s.create(ctx, cold)
		if err != nil {
			return 0, err
		}
		_, err = s.exec(ctx, id, "echo", "hello")
		took := time.Since(began)
		return took.Seconds(), errors.Join(err, s.delete(ctx, id))
	}
}

// resumeExec is the time from asking for a paused sandbox to the output of a command.
func (s *server) resumeExec(ctx context.Context) (float64, error) {
	id, err := s.create(ctx, false)
	if err != nil {
		return 0, err
	}
	_, err = s.exec(ctx, id, "echo", "hello")
	err = errors.Join(err, s.pause(ctx, id))
	began := time.Now()
	err = errors.Join(err, s.resume(ctx, id))
	if err == nil {
		_, err = s.exec(ctx, id, "echo", "hello")
	}
	took := time.Since(began)
	return took.Seconds(), errors.Join(err, s.delete(ctx, id))
}

const ballast = "head -c 104857600 /dev/urandom >/dev/shm/ballast"

// pauseBytes compares what a pause left on disk with the pages that the VM had, counted from
// outside just before.
func (s *server) pauseBytes(ctx context.Context, pairs int) ([]harness.Result, error) {
	const name = "bytes written by pause ÷ non-zero private pages × 4096"
	var out []harness.Result
	for _, c := range []struct{ what, prepare string }{
		{"idle", "true"}, {"after writing 100 MB", ballast},
	} {
		var pages float64
		written := func(ctx context.Context) (float64, error) {
			id, err := s.create(ctx, false)
			if err != nil {
				return 0, err
			}
			defer func() { _ = s.delete(ctx, id) }()
			if _, err := s.exec(ctx, id, "sh", "-c", c.prepare); err != nil {
				return 0, err
			}
			if pages, err = s.countPages(id); err != nil {
				return 0, err
			}
			if err := s.pause(ctx, id); err != nil {
				return 0, err
			}
			return s.captureBytes(id)
		}
		// B is of the same sandbox as the A before it.
		r, err := harness.Run(ctx, harness.Experiment{
			Name: name + ", " + c.what, Unit: harness.Bytes, Limit: 1.10, NoControl: true, Warmup: -1,
			Pairs: max(pairs/6, 1), Progress: progress,
			A: written, B: func(ctx context.Context) (float64, error) {
				if pages == 0 {
					if _, err := written(ctx); err != nil {
						return 0, err
					}
				}
				return pages * pageSize, nil
			},
		})
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// captureBytes is the real size of the newest capture: what that pause wrote.
func (s *server) captureBytes(id string) (float64, error) {
	dir, err := s.capture(id)
	if err != nil {
		return 0, err
	}
	var total int64
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	return float64(total), err
}

// tenthPause pauses one sandbox ten times; only before the first it writes.
func (s *server) tenthPause(ctx context.Context, pairs int) ([]harness.Result, error) {
	var first, tenth float64
	cycle := func(ctx context.Context) error {
		id, err := s.create(ctx, false)
		if err != nil {
			return err
		}
		defer func() { _ = s.delete(ctx, id) }()
		if _, err := s.exec(ctx, id, "sh", "-c", ballast); err != nil {
			return err
		}
		for n := 1; n <= 10; n++ {
			if n > 1 {
				if err := s.resume(ctx, id); err != nil {
					return err
				}
			}
			if err := s.pause(ctx, id); err != nil {
				return err
			}
			if n == 1 {
				if first, err = s.captureBytes(id); err != nil {
					return err
				}
			}
		}
		tenth, err = s.captureBytes(id)
		return err
	}
	r, err := harness.Run(ctx, harness.Experiment{
		Name: "tenth pause of an idle sandbox ÷ first after writing 100 MB, bytes",
		Unit: harness.Bytes, Limit: 0.1, NoControl: true, Warmup: -1, Pairs: max(pairs/10, 1), Progress: progress,
		A: func(ctx context.Context) (float64, error) {
			err := cycle(ctx)
			return tenth, err
		},
		B: func(ctx context.Context) (float64, error) {
			if first == 0 {
				if err := cycle(ctx); err != nil {
					return 0, err
				}
			}
			return first, nil
		},
	})
	return []harness.Result{r}, err
}

const inGuest = `import os, time
n, began = 50, time.perf_counter()
for _ in range(n):
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
print((time.perf_counter() - began) / n)`

// execTrue compares a command through API, control plane, agent and guest with what the guest
// needs by itself.
func (s *server) execTrue(suffix string) measure {
	return func(ctx context.Context, pairs int) ([]harness.Result, error) {
		id, err := s.create(ctx, false)
		if err != nil {
			return nil, err
		}
		defer func() { _ = s.delete(ctx, id) }()
		r, err := harness.Run(ctx, harness.Experiment{
			Name: "exec of true, warm connection ÷ the guest's own fork and exec" + suffix,
			Unit: harness.Seconds, Pairs: pairs, Warmup: 5, Progress: progress,
			A: harness.Timed(func(ctx context.Context) error {
				_, err := s.exec(ctx, id, "/bin/true")
				return err
			}),
			B: func(ctx context.Context) (float64, error) {
				out, err := s.exec(ctx, id, "python3", "-c", inGuest)
				if err != nil {
					return 0, err
				}
				return strconv.ParseFloat(out, 64)
			},
		})
		if err != nil {
			return nil, err
		}
		return []harness.Result{r}, s.profileExec(ctx, id)
	}
}
