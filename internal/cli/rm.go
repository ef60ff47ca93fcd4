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
Ids must be whole. Snapshots, forks and templates that came from them go on. --all asks first on a terminal and needs -y elsewhere.`,
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
		if err := checkAll(args, checkID); err != nil {
			return usage(cmd, "%s", err.Error())
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

// removal is the JSON document of rm, and of snapshot rm and template rm.
type removal struct {
	Deleted []string       `json:"deleted"`
	InUse   []stillUsed    `json:"in_use,omitempty"`
	Failed  []failedObject `json:"failed,omitempty"`
}

// remove deletes every id, also when one of them fails.
func (a *app) remove(ctx context.Context, c *client, ids []string) error {
	out := removal{Deleted: []string{}}
	failed, err := each(ctx, a.json, "deleting", ids,
		func(id string) (struct{}, error) {
			return struct{}{}, settled(c.api.DeleteSandboxWithResponse(ctx, id))
		},
		func(id string, _ struct{}, err error) error {
			if err != nil {
				out.Failed = append(out.Failed, failedObject{ID: id, Error: apiError(err)})
				return err
			}
			return a.deleted(&out, id)
		})
	if err != nil {
		return err
	}
	return a.removed(out, failed)
}

// deleted notes one that is gone, and prints it at once.
func (a *app) deleted(out *removal, object string) error {
	out.Deleted = append(out.Deleted, object)
	if a.json {
		return nil
	}
	_, err := fmt.Fprintln(os.Stdout, object)
	return err
}

func (a *app) removed(out removal, failed failures) error {
	if a.json {
		return printWithFailures(out, failed)
	}
	return failedAll(failed)
}
