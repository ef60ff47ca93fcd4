package cli

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

func (a *app) rmCommand() *cobra.Command {
	var all, yes bool
	cmd := &cobra.Command{
		Use:   "rm ID...",
		Short: "Delete sandboxes, in any state",
		Long: `Delete sandboxes, in any state, with their memory and disks. Deleting one again is a success.
Ids must be whole. --all asks first on a terminal and needs -y elsewhere.`,
		Example: `  roost rm $id
  roost rm $id1 $id2
  roost rm --all -y`,
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return fmt.Errorf("give either ids or --all")
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, id := range args {
			if err := checkID(id); err != nil {
				return usage(cmd, "%s", err.Error())
			}
		}
		if all && !yes && !isTerminal(os.Stdin) {
			return usage(cmd, "--all without a terminal needs -y")
		}
		return a.run(func(ctx context.Context, c *client, ids []string) error {
			if all {
				return a.removeAll(ctx, c, yes)
			}
			return a.remove(ctx, c, ids)
		})(cmd, args)
	}
	cmd.Flags().BoolVar(&all, "all", false, "every sandbox")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) removeAll(ctx context.Context, c *client, yes bool) error {
	sandboxes, err := c.sandboxes(ctx, "")
	if err != nil {
		return err
	}
	var ids []string
	for _, s := range sandboxes {
		if s.State != v1.Deleted {
			ids = append(ids, s.Id)
		}
	}
	if len(ids) > 0 && !yes {
		sure, err := confirm(ctx, fmt.Sprintf("Delete %d sandboxes with their memory and disks? [y/N] ", len(ids)))
		if err != nil || !sure {
			return &exitError{code: exitFailed, err: fault.New(fault.Canceled, "", "", "nothing was deleted")}
		}
	}
	return a.remove(ctx, c, ids)
}

// confirm asks on stderr. It returns at once when ctx ends, leaving its reader behind: the
// process is about to end.
func confirm(ctx context.Context, question string) (bool, error) {
	_, _ = fmt.Fprint(os.Stderr, question)
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		line <- text
	}()
	select {
	case text := <-line:
		text = strings.ToLower(strings.TrimSpace(text))
		return text == "y" || text == "yes", nil
	case <-ctx.Done():
		_, _ = fmt.Fprintln(os.Stderr)
		return false, ctx.Err()
	}
}

// removal is the JSON document of rm.
type removal struct {
	Deleted []string        `json:"deleted"`
	Failed  []failedRemoval `json:"failed,omitempty"`
}

type failedRemoval struct {
	ID    string   `json:"id"`
	Error v1.Error `json:"error"`
}

// remove deletes every id, also when one of them fails.
func (a *app) remove(ctx context.Context, c *client, ids []string) error {
	out := removal{Deleted: []string{}}
	var failures []error
	for _, id := range ids {
		progress := startBusy(a.json, "deleting "+id)
		err := settled(c.api.DeleteSandboxWithResponse(ctx, id))
		progress.stop()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			failures = append(failures, on(id, err))
			out.Failed = append(out.Failed, failedRemoval{id, apiError(err)})
		default:
			out.Deleted = append(out.Deleted, id)
			if !a.json {
				_, _ = fmt.Fprintln(os.Stdout, id)
			}
		}
	}
	return a.removed(out, failures)
}

func (a *app) removed(out removal, failures []error) error {
	if a.json {
		if err := printJSON(os.Stdout, out); err != nil {
			return err
		}
		if len(failures) > 0 {
			return &exitError{code: exitFailed}
		}
		return nil
	}
	return failedAll(failures)
}
