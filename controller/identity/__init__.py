"""Who is who: the mesh's certificate authority, node certificates, secrets that people and hosts present."""
