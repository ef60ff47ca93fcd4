package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// maxTail is the most console that the API gives at once.
const maxTail = 1 << 20

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var tail int
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Show the end of a sandbox's console",
		Long:  "Show the end of a sandbox's console (its kernel and init), kept after its death.",
		Example: `  roost logs $id
  roost logs $id --tail 4096
  roost logs $id -f`,
		Args: takes("ID"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if tail < 1 || tail > maxTail {
			return usage(cmd, "--tail must be 1 to %d bytes", maxTail)
		}
		return a.onSandbox(func(ctx context.Context, c *client, id string) error {
			if follow {
				return a.followLogs(ctx, c, id, tail)
			}
			return a.logs(ctx, c, id, tail)
		})(cmd, args)
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the sandbox ends")
	cmd.Flags().IntVar(&tail, "tail", 64<<10, "how many bytes from the end")
	return cmd
}

type console struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

func (a *app) logs(ctx context.Context, c *client, id string, tail int) error {
	text, err := c.console(ctx, id, tail)
	if err != nil {
		return err
	}
	if a.json {
		return printJSON(os.Stdout, console{id, string(text)})
	}
	_, err = os.Stdout.Write(harmless(text))
	return err
}

// harmless is console text without what would command the reader's terminal: the guest wrote
// it. Into a file or a pipe it goes as it is.
func harmless(text []byte) []byte {
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		return text
	}
	return bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r == '\r' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
}

func (c *client) console(ctx context.Context, id string, tail int) ([]byte, error) {
	body, err := content(c.api.GetSandboxLogs(ctx, id, &v1.GetSandboxLogsParams{TailBytes: &tail}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	return io.ReadAll(io.LimitReader(body, maxTail))
}

// followLogs polls the console and prints what was added, until the sandbox has ended. The
// state is read before the console, so that nothing printed before the end is missed.
func (a *app) followLogs(ctx context.Context, c *client, id string, tail int) error {
	var seen []byte
	for {
		over, err := c.over(ctx, id)
		if err != nil {
			return err
		}
		now, err := c.console(ctx, id, maxTail)
		if err != nil {
			return err
		}
		fresh := added(seen, now)
		if seen == nil && len(fresh) > tail {
			fresh = fresh[len(fresh)-tail:]
		}
		if err := a.printFresh(id, fresh); err != nil || over {
			return err
		}
		seen = append([]byte{}, now...)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(a.pollLogs):
		}
	}
}

func (a *app) printFresh(id string, fresh []byte) error {
	if len(fresh) == 0 {
		return nil
	}
	if a.json {
		return printLine(os.Stdout, console{id, string(fresh)})
	}
	_, err := os.Stdout.Write(harmless(fresh))
	return err
}

// over tells whether no more console will come.
func (c *client) over(ctx context.Context, id string) (bool, error) {
	sandbox, err := answer[v1.Sandbox](c.api.GetSandboxWithResponse(ctx, id))
	if fault.Is(err, fault.NotFound) {
		return true, nil
	}
	return restartable(sandbox) || sandbox.State == v1.Deleted, err
}

// added is the part of now that follows seen. Both are ends of one growing text, now perhaps
// starting later; the longest overlap is taken.
func added(seen, now []byte) []byte {
	if rest, ok := bytes.CutPrefix(now, seen); ok {
		return rest
	}
	anchor := seen[max(0, len(seen)-1024):]
	for end := len(now); ; {
		at := bytes.LastIndex(now[:end], anchor)
		if at < 0 {
			return now
		}
		if bytes.HasSuffix(seen, now[:at+len(anchor)]) {
			return now[at+len(anchor):]
		}
		end = at + len(anchor) - 1
	}
}
