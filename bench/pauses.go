package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/roosthq/roost/bench/harness"
)

// holder keeps random bytes in the memory of a Python process, and returns when it has them.
const holder = `import os, random, signal
ready, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    held = [random.randbytes(1 << 20) for _ in range(%d)]
    for fd in 0, 1, 2:
        os.dup2(os.open("/dev/null", os.O_RDWR), fd)
    os.write(told, b"held")
    signal.pause()
assert os.read(ready, 4) == b"held"`

// writer writes random bytes to the disk.
const writer = `import random
with open("/home/user/data", "wb") as f:
    for _ in range(%d):
        f.write(random.randbytes(1 << 20))`

// stake is what a sandbox holds when it is paused.
type stake struct {
	what, program string
}

var stakes = []stake{
	{"an idle sandbox, nothing written", "pass"},
	{"one holding 200 MB in memory", fmt.Sprintf(holder, 200)},
	{"one that wrote 200 MB to disk", fmt.Sprintf(writer, 200)},
}

// pausesBeside compares pause, resume and bytes on gVisor with those on QEMU.
func pausesBeside(gvisor, qemu *server) measure {
	return func(ctx context.Context, pairs int) ([]harness.Result, error) {
		var out []harness.Result
		for i, st := range stakes {
			n := pairs
			if i == 0 {
				n *= 3 // this one is quick
			}
			var onGVisor, onQEMU phases
			r, err := harness.RunMany(ctx, harness.Many{
				Parts: pauseParts(st.what + ", gVisor ÷ QEMU"), Pairs: n, NoControl: true, Progress: progress,
				A: gvisor.pauseCycle(st.program, &onGVisor), B: qemu.pauseCycle(st.program, &onQEMU),
			})
			if err != nil {
				return nil, err
			}
			onGVisor.print(st.what + ", on gVisor")
			onQEMU.print(st.what + ", on QEMU")
			out = append(out, r...)
		}
		return out, nil
	}
}

func pauseParts(what string) []harness.Part {
	return []harness.Part{
		{Name: "pause of " + what, Unit: harness.Seconds},
		{Name: "resume of " + what, Unit: harness.Seconds},
		{Name: "bytes stored by the pause of " + what, Unit: harness.Bytes},
	}
}

// pauseCycle gives the seconds of a pause and of the resume after it, as the calls take them, and
// what the pause stored.
func (s *server) pauseCycle(program string, took *phases) harness.ManySample {
	return func(ctx context.Context) (_ []float64, err error) {
		id, err := s.create(ctx, false)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.delete(ctx, id)) }()
		if _, err := s.execRoot(ctx, id, "python3", "-c", program); err != nil {
			return nil, err
		}
		paused, err := took.of(ctx, s, id, "pause", s.pause)
		if err != nil {
			return nil, err
		}
		stored, err := s.captureBytes(id)
		if err != nil {
			return nil, err
		}
		resumed, err := took.of(ctx, s, id, "resume", s.resume)
		if err != nil {
			return nil, err
		}
		_, err = s.exec(ctx, id, "true")
		return []float64{paused, resumed, stored}, err
	}
}

const large = 2048 // MB

// pausesLarge compares pause and resume of a sandbox that wrote 2 GB with what the host needs at
// least to keep and to copy as many bytes.
func (s *server) pausesLarge(ctx context.Context, pairs int) ([]harness.Result, error) {
	var took phases
	defer took.print("one that wrote 2 GB")
	what := "one that wrote 2 GB to disk on gVisor ÷ the host's own write and fsync, copy, and size of 2 GB"
	return harness.RunMany(ctx, harness.Many{
		Parts: pauseParts(what), Pairs: pairs, Warmup: -1, NoControl: true, Progress: progress,
		A: s.pauseCycle(fmt.Sprintf(writer, large), &took), B: func(context.Context) ([]float64, error) { return s.plainFiles() },
	})
}

// plainFiles are the seconds of a write with fsync and of a copy, and the bytes, in the folder
// where sandboxes are.
func (s *server) plainFiles() ([]float64, error) {
	dir, err := os.MkdirTemp(s.data, "plain-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	began := time.Now()
	first, err := os.Create(filepath.Join(dir, "first"))
	if err != nil {
		return nil, err
	}
	defer first.Close()
	for range large {
		if _, err := first.Write(block); err != nil {
			return nil, err
		}
	}
	if err := first.Sync(); err != nil {
		return nil, err
	}
	wrote := time.Since(began).Seconds()
	began = time.Now()
	if _, err := first.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	second, err := os.Create(filepath.Join(dir, "second"))
	if err != nil {
		return nil, err
	}
	// By reading and writing: the kernel's own copy may share blocks.
	_, err = io.CopyBuffer(struct{ io.Writer }{second}, struct{ io.Reader }{first}, block)
	return []float64{wrote, time.Since(began).Seconds(), large << 20}, errors.Join(err, second.Close())
}
