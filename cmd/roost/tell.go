package main

import (
	"fmt"
	"io"
	"time"

	"github.com/roosthq/roost/internal/host/image"
)

// teller prints the steps of a start that take more than a moment.
type teller struct{ out io.Writer }

// worthTelling is the least time that a finished step is reported for.
const worthTelling = 200 * time.Millisecond

func (t teller) progress(p image.Progress) {
	switch {
	case !p.Done:
		fmt.Fprintf(t.out, "  …        %s\n", p.Step)
	case p.Err != nil:
		fmt.Fprintf(t.out, "  failed   %s\n", p.Step)
	default:
		fmt.Fprintf(t.out, "  %6.1f s %s\n", p.Elapsed.Seconds(), p.Step)
	}
}

// step runs f and reports how long it took, if that was long.
func (t teller) step(name string, f func() error) error {
	began := time.Now()
	err := f()
	if took := time.Since(began); err == nil && took > worthTelling {
		fmt.Fprintf(t.out, "  %6.1f s %s\n", took.Seconds(), name)
	}
	return err
}
