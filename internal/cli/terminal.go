package cli

import (
	"os"

	"golang.org/x/term"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// terminalSize is the size of the terminal we are on, if any.
func terminalSize() (v1.PTYSize, bool) {
	for _, f := range []*os.File{os.Stdout, os.Stdin, os.Stderr} {
		if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
			return v1.PTYSize{Cols: cols, Rows: rows}, true
		}
	}
	return v1.PTYSize{Cols: 80, Rows: 24}, false
}

// rawTerminal hands every key to the remote terminal until restore is called. Without a
// terminal on stdin there is nothing to do.
func rawTerminal() (restore func(), err error) {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return func() {}, nil
	}
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(fd, before) }, nil
}

// terminalEnv adds to env what programs need to know about our terminal.
func terminalEnv(env pairs) pairs {
	out := pairs{"TERM": firstOf(os.Getenv("TERM"), "xterm-256color")}
	if colors := os.Getenv("COLORTERM"); colors != "" {
		out["COLORTERM"] = colors
	}
	for name, value := range env {
		out[name] = value
	}
	return out
}
