package api

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/guestproxy"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/fault"
)

const (
	defaultExecTimeout = 60
	maxExecTimeout     = 30 * 24 * 3600
	maxCmdBytes        = 128 << 10
	maxTerminal        = 10000
)

// ExecSandbox runs a command to its end. A client that leaves ends it.
func (a *API) ExecSandbox(ctx context.Context, r v1.ExecSandboxRequestObject) (v1.ExecSandboxResponseObject, error) {
	const what = "exec in"
	cmd, err := commandOf(v1.ExecStart{Cmd: r.Body.Cmd, Env: r.Body.Env, Cwd: r.Body.Cwd, User: r.Body.User,
		TimeoutS: timeoutOr(r.Body.TimeoutS, defaultExecTimeout)})
	if err != nil {
		return nil, err
	}
	if _, err := a.sandboxes.Ready(ctx, r.Id, what); err != nil {
		return nil, err
	}
	result, err := a.guests.Guest(r.Id, or(r.Body.User, "")).Run(ctx, cmd, or(r.Body.Stdin, ""))
	if err != nil {
		return nil, a.explain(ctx, r.Id, what, err)
	}
	return v1.ExecSandbox200JSONResponse{
		ExitCode: result.Exit.Code, Signal: optional(result.Exit.Signal),
		Stdout: bytesOf(result.Stdout), Stderr: bytesOf(result.Stderr), Truncated: optional(result.Truncated),
	}, nil
}

// bytesOf keeps nothing from becoming null in JSON.
func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func timeoutOr(t *int, fallback int) *int {
	v := or(t, fallback)
	return &v
}

// commandOf checks a command before anything is asked of the guest.
func commandOf(s v1.ExecStart) (guestproxy.Command, error) {
	c := guestproxy.Command{Cmd: s.Cmd, Env: or(s.Env, nil), Cwd: or(s.Cwd, ""), Stdin: or(s.Stdin, false),
		Timeout: time.Duration(or(s.TimeoutS, 0)) * time.Second}
	if err := checkCmd(s.Cmd); err != nil {
		return c, err
	}
	if t := or(s.TimeoutS, 0); t < 0 || t > maxExecTimeout {
		return c, fault.New(fault.Invalid, "", "", fmt.Sprintf("timeout_s is %d: must be 0 to %d", t, maxExecTimeout))
	}
	if c.Cwd != "" {
		if err := guestproxy.CheckPath(c.Cwd); err != nil {
			return c, fault.Wrap(err, "", "cwd")
		}
	}
	if err := guestproxy.CheckUser(or(s.User, "")); err != nil {
		return c, err
	}
	if err := sandbox.CheckEnv(c.Env); err != nil {
		return c, err
	}
	if s.Pty != nil {
		size, err := sizeOf(*s.Pty)
		if err != nil {
			return c, err
		}
		c.PTY = &size
	}
	return c, nil
}

func checkCmd(cmd []string) error {
	total := 0
	for _, arg := range cmd {
		if strings.ContainsRune(arg, 0) {
			return fault.New(fault.Invalid, "", "", "cmd holds a zero byte")
		}
		total += len(arg) + 1
	}
	switch {
	case len(cmd) == 0 || cmd[0] == "":
		return fault.New(fault.Invalid, "", "", "cmd is empty: it must name a program")
	case total > maxCmdBytes:
		return fault.New(fault.Invalid, "", "", fmt.Sprintf("cmd has %d bytes: at most %d", total, maxCmdBytes))
	}
	return nil
}

func sizeOf(s v1.PTYSize) (guestproxy.Size, error) {
	if s.Cols < 1 || s.Cols > maxTerminal || s.Rows < 1 || s.Rows > maxTerminal {
		return guestproxy.Size{}, fault.New(fault.Invalid, "", "",
			fmt.Sprintf("pty size is %dx%d: cols and rows must be 1 to %d", s.Cols, s.Rows, maxTerminal))
	}
	return guestproxy.Size{Cols: uint32(s.Cols), Rows: uint32(s.Rows)}, nil
}
