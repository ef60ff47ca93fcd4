package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "key",
		Short:   "API keys",
		Example: "  roost key ls\n  roost key create ci\n  roost key rm KEY_ID",
	}
	cmd.AddCommand(a.keyLsCommand(), a.keyCreateCommand(), a.keyRmCommand())
	return group(cmd)
}

type keyList struct {
	APIKeys []v1.APIKey `json:"api_keys"`
}

func (a *app) keyLsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List API keys, without their secrets",
		Example: "  roost key ls",
		Args:    takes(),
		RunE: a.run(func(ctx context.Context, c *client, _ []string) error {
			list, err := answer[keyList](c.api.ListAPIKeysWithResponse(ctx))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(os.Stdout, list)
			}
			return keyTable(list.APIKeys)
		}),
	}
}

func keyTable(keys []v1.APIKey) error {
	t := newTable(os.Stdout, "ID", "NAME", "PREFIX", "AGE", "LAST-USED")
	for _, k := range keys {
		last := "never"
		if k.LastUsedAt != nil {
			last = age(*k.LastUsedAt) + " ago"
		}
		t.row(k.Id, k.Name, k.Prefix, age(k.CreatedAt), last)
	}
	return t.flush()
}

func (a *app) keyCreateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "create NAME",
		Short: "Make an API key and print its secret, once",
		Long:  "Make an API key and print its secret on stdout. It is kept only as a hash: this is the one time it shows.",
		Example: `  roost key create ci
  ROOST_API_KEY=$(roost key create laptop)`,
		Args: takes("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return nameObject(args[0], a.run(a.createKey)(cmd, args))
		},
	}
}

func (a *app) createKey(ctx context.Context, c *client, args []string) error {
	made, err := answer[v1.NewAPIKey](c.api.CreateAPIKeyWithResponse(ctx, v1.CreateAPIKeyJSONRequestBody{Name: args[0]}))
	if err != nil {
		return err
	}
	if a.json {
		return printJSON(os.Stdout, made)
	}
	_, _ = fmt.Fprintf(os.Stderr, "key %s (%s); keep its secret now, it is not shown again:\n", printable(made.ApiKey.Name), printable(made.ApiKey.Id))
	_, err = fmt.Fprintln(os.Stdout, made.Secret)
	return err
}

func (a *app) keyRmCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rm KEY_ID",
		Short:   "Revoke an API key",
		Example: "  roost key rm KEY_ID",
		Args:    takes("KEY_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkID(args[0]); err != nil {
				return usage(cmd, "%q is no key id; roost key ls shows them", args[0])
			}
			return nameObject(args[0], a.run(a.removeKey)(cmd, args))
		},
	}
}

func (a *app) removeKey(ctx context.Context, c *client, args []string) error {
	if err := settled(c.api.DeleteAPIKeyWithResponse(ctx, args[0])); err != nil {
		return err
	}
	if a.json {
		return printJSON(os.Stdout, map[string][]string{"deleted": args})
	}
	_, err := fmt.Fprintln(os.Stdout, args[0])
	return err
}
